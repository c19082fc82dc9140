"""lm-eval over a checkpoint: its own evaluation gives our numbers, and every token has its role."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import lm_eval
import pytest
from examinee_samples import V, examinee, tiny_aside
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from bulwark.benchmarks import gsm8k, mmlu
from bulwark.data.records import ROLE_NUMBERS
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.evaluation import harness
from bulwark.models.decoding import Decoding
from bulwark.settings import validated

SUBJECTS = ("abstract_algebra", "anatomy")


def questions(count: int, prefix: str = "q") -> list[dict]:
    return [
        {
            "id": f"{prefix}{number}",
            "question": f"Which is {number}?",
            "choices": [f"tree {number}", "vote", "meal plan", "the part"],
            "answer": number % 4,
            "subject": SUBJECTS[number % 2],
        }
        for number in range(count)
    ]


def records_of(rows: list[dict]) -> list[mmlu.Record]:
    return [mmlu.Record(**{**row, "choices": tuple(row["choices"])}) for row in rows]


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def solutions(count: int) -> list[dict]:
    return [{"id": str(n), "question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(count)]


@pytest.fixture(scope="module")
def model():
    return tiny_aside()


def settings(module, **changes):
    return validated(module.Settings, changes, "test")


def benchmark(module, **changes):
    return module.Benchmark(settings(module, **changes))


@pytest.mark.parametrize("format", ["letters", "continuation"])
@pytest.mark.parametrize("shots", [0, 2])
def test_mmlu_is_lm_evals_own(tmp_path, model, format, shots):
    records = records_of(questions(8))
    fewshot = {"data": "mmlu", "split": "dev", "count": shots} if shots else None
    chosen = benchmark(mmlu, format=format, fewshot=fewshot)
    subject = examinee(
        tmp_path, model, inputs={"fewshot": written(tmp_path / "dev.jsonl", questions(6, "d"))} if shots else {}
    )
    rows = chosen.answers(subject, records)
    ours = [chosen.score(r, {"answer": row["response"]}) for r, row in zip(records, rows, strict=True)]

    tasks = {
        name: harness.task_of(
            name,
            {
                **harness.configuration(f"mmlu/{'default' if format == 'letters' else format}/mmlu_{name}.yaml"),
                "task": name,
            },
            [row for row in questions(8) if row["subject"] == name],
            [row for row in questions(6, "d") if row["subject"] == name] if shots else None,
            shots,
        )
        for name in SUBJECTS
    }
    theirs = evaluate(
        harness.Examined(examinee(tmp_path / "fresh", model)),
        tasks,
        bootstrap_iters=0,
        apply_chat_template=True,
        log_samples=True,
    )
    by_id = {sample["doc"]["id"]: sample for samples in theirs["samples"].values() for sample in samples}
    assert [row["accuracy"] for row in ours] == [by_id[record.id]["acc"] for record in records]
    for record, row in zip(records, ours, strict=True):
        expected = [found.value for [found] in by_id[record.id]["resps"]]
        assert row["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
    assert 0 < sum(row["accuracy"] for row in ours) < 8
    reported = chosen.reported(ours)
    assert reported["chance"] == 0.25
    assert chosen.aggregate(ours)["accuracy"]["n"] == 8


def test_descriptions_are_lm_evals():
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu"
    for format, name in (("letters", "default"), ("continuation", "continuation")):
        files = sorted((folder / name).glob("mmlu_*.yaml"))
        assert len(files) == 57
        for file in files:
            subject = file.stem.removeprefix("mmlu_")
            told = harness.configuration(f"mmlu/{name}/{file.name}")["description"]
            assert mmlu.description(subject, format).split() == told.split(), subject


def test_what_comes_before_the_answer_is_instruction(tmp_path, model):
    lm = harness.Examined(examinee(tmp_path, model))
    context = lm.apply_chat_template(
        [{"role": "system", "content": "About trees."}, {"role": "user", "content": "Q: 1\nA: 2\n\nQ: 3\nA:"}]
    )
    _, example = lm.scored([Instance("loglikelihood", {}, (context, "4"), 0, ("t", 0, 1))])[0]
    answer = example.spans[-1]
    before = set(example.roles[: answer.start])
    assert before == {ROLE_NUMBERS["instruction"]}
    assert all(token >= V for token in example.ids[: answer.start])
    assert example.roles[answer.start] == ROLE_NUMBERS["response"]
    assert "Q: 1\nA: 2" in example.text


def test_a_prompt_that_is_too_long_loses_its_beginning(tmp_path):
    lm = harness.Examined(examinee(tmp_path, tiny_aside(positions=96)))
    asked = "old words " * 60 + "Question: last?\nAnswer:"
    context = lm.apply_chat_template([{"role": "system", "content": "Short."}, {"role": "user", "content": asked}])
    _, example = lm.scored([Instance("loglikelihood", {}, (context, "A"), 0, ("t", 0, 1))])[0]
    assert example.truncated
    assert len(example.ids) <= 96
    assert "Short." in example.text
    assert "Question: last?\nAnswer:" in example.text
    short = harness.Examined(lm.examinee, Decoding(max_new_tokens=8, max_prompt_tokens=48))
    cut = short._fitting(harness._turns(context))
    assert cut.truncated
    assert len(cut.ids) <= 48
    assert "Question: last?\nAnswer:" in cut.text
    whole = lm.apply_chat_template([{"role": "user", "content": "Question?"}])
    assert not lm.scored([Instance("loglikelihood", {}, (whole, "A"), 0, ("t", 1, 1))])[0][1].truncated
    with pytest.raises(BulwarkError, match="does not fit"):
        harness.Examined(lm.examinee, Decoding(max_prompt_tokens=5)).generated(
            [Instance("generate_until", {}, (whole, {"until": []}), 0, ("t", 2, 1))]
        )


def test_other_shapes_of_tasks_are_refused(tmp_path, model):
    lm = harness.Examined(examinee(tmp_path, model))
    several = json.dumps([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
    with pytest.raises(BulwarkError, match="one user message"):
        lm.loglikelihood([Instance("loglikelihood", {}, (several, "4"), 0, ("t", 0, 1))])
    with pytest.raises(BulwarkError, match="gen_prefix"):
        lm.apply_chat_template([], add_generation_prompt=False)
    with pytest.raises(BulwarkError, match="Perplexity"):
        lm.loglikelihood_rolling([])


def test_generation_stops_at_the_tasks_strings(tmp_path, model, monkeypatch):
    def fake(model, prompts, decoding, **_):
        assert decoding.max_new_tokens == 7
        texts = ["It is 2.\n#### 2\n\nQuestion: more", "#### 3"]
        return [
            harness.generation.Answer(key, text, 7, "length", False)
            for (key, _), text in zip(prompts, texts, strict=True)
        ]

    monkeypatch.setattr(harness.generation, "generate", fake)
    records = [gsm8k.Record(**row) for row in solutions(2)]
    chosen = benchmark(gsm8k, decoding={"max_new_tokens": 7})
    rows = chosen.answers(examinee(tmp_path, model), records)
    assert [(row["response"], row["finish"]) for row in rows] == [("It is 2.\n#### 2", "stop"), ("#### 3", "length")]


@pytest.mark.parametrize(
    ("task", "response", "strict", "flexible"),
    [
        ("gsm8k", "Half of it.\n#### 1,234", 1, 1),
        ("gsm8k", "The answer is $1,234", 0, 1),
        ("gsm8k", "#### 1235", 0, 0),
        ("gsm8k", "", 0, 0),
        ("gsm8k_cot", "So 1,000 + 234. The answer is 1234.", 1, 1),
        ("gsm8k_cot", "#### 1234", 0, 1),
    ],
)
def test_gsm8k_counts_as_lm_eval_does(task, response, strict, flexible):
    record = gsm8k.Record(id="1", question="How many?", answer="Many.\n#### 1234")
    row = benchmark(gsm8k, task=task).score(record, {"answer": response})
    assert (row["exact_match_strict"], row["exact_match_flexible"]) == (strict, flexible)


@pytest.mark.parametrize("end", ["18\n", " 18 ", "$18", "-18", "-$18", "1,800", "18.50"])
def test_a_right_answer_to_any_number_that_gsm8k_takes_is_counted(end):
    record = gsm8k.Record(id="1", question="How many?", answer=f"See #### 7.\n#### {end}")
    row = benchmark(gsm8k).score(record, {"answer": f"#### {end.strip().replace('$', '')}"})
    assert (row["exact_match_strict"], row["exact_match_flexible"]) == (1, 1)


@pytest.mark.parametrize(
    "end", ["", " \n", "18 apples", "18%", "18.0", "18.", "**18**", "1/2", ",", "eighteen", "\u0663", "18\nCheck: 18"]
)
def test_a_number_that_no_answer_to_gsm8k_can_equal_is_refused(tmp_path, end):
    rows = [solutions(1)[0], {**solutions(2)[1], "answer": f"So #### 18\n#### {end}"}]
    with pytest.raises(RecordError, match=r'bad\.jsonl, line 2: .*does not end with "#### " and a number'):
        benchmark(gsm8k).load(written(tmp_path / "bad.jsonl", rows))


@pytest.mark.parametrize(("task", "shown"), [("gsm8k", 5), ("gsm8k_cot", 8)])
def test_gsm8k_shows_solved_examples_once_each(tmp_path, model, monkeypatch, task, shown):
    prompts = []

    def fake(model, given, decoding, **_):
        prompts.extend(prompt for _, prompt in given)
        return [harness.generation.Answer(key, "1", 1, "stop", prompt.truncated) for key, prompt in given]

    monkeypatch.setattr(harness.generation, "generate", fake)
    few = {"data": "gsm8k", "split": "train", "count": 5} if task == "gsm8k" else None
    inputs = {"fewshot": written(tmp_path / "train.jsonl", solutions(20))} if few else {}
    chosen = benchmark(gsm8k, task=task, fewshot=few, decoding={"max_new_tokens": 4})
    subject = examinee(tmp_path, tiny_aside(positions=8192), inputs=inputs)
    chosen.answers(subject, [gsm8k.Record(**row) for row in solutions(2)])
    first = prompts[0]
    starts = {"gsm8k": "Question: ", "gsm8k_cot": "Q: "}[task]
    assert first.text.count(starts) == shown + 1
    assert set(first.roles) == {ROLE_NUMBERS["instruction"]}
    assert not first.truncated


def test_unusable_settings_and_records_are_refused(tmp_path, model):
    with pytest.raises(ConfigurationError, match="eight examples"):
        settings(gsm8k, task="gsm8k_cot", fewshot={"data": "gsm8k", "split": "train", "count": 5})
    with pytest.raises(RecordError, match="number 4 of 4"):
        benchmark(mmlu).load(written(tmp_path / "bad.jsonl", [{**questions(1)[0], "answer": 4}]))
    with pytest.raises(RecordError, match="####"):
        benchmark(gsm8k).load(written(tmp_path / "bad.jsonl", [{**solutions(1)[0], "answer": "2"}]))
    five = [mmlu.Record(**{**questions(1)[0], "choices": tuple("abcde")})]
    with pytest.raises(RecordError, match="continuation"):
        benchmark(mmlu).answers(examinee(tmp_path, model), five)
    few = written(tmp_path / "dev.jsonl", questions(2, "d"))
    chosen = benchmark(mmlu, fewshot={"data": "mmlu", "split": "dev", "count": 2})
    with pytest.raises(RecordError, match=r"dev\.jsonl, subject .*: 1 examples, 2 are asked for"):
        chosen.answers(examinee(tmp_path, model, inputs={"fewshot": few}), records_of(questions(2)))


def test_the_benchmarks_ask_for_their_examples():
    few = {"data": "mmlu", "split": "dev", "count": 5}
    assert settings(mmlu, fewshot=few).inputs() == {"fewshot": "data/mmlu/dev.jsonl"}
    assert settings(gsm8k).inputs() == {}
    assert settings(gsm8k).decoding == Decoding(max_new_tokens=256)


def asked(model, tmp_path, module, records, examples, count, monkeypatch, **changes) -> list[str]:
    """The texts that the model is asked, `count` of `examples` in front."""
    texts = []

    def noted(self, requests):
        texts.extend(json.loads(request.args[0])[-1]["content"] for request in requests)
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.Examined, "scored", noted)
    monkeypatch.setattr(harness.Examined, "generated", noted)
    chosen = benchmark(module, fewshot={"data": "own", "split": "test", "count": count}, **changes)
    inputs = {"fewshot": written(tmp_path / "own.jsonl", examples)}
    with pytest.raises(KeyboardInterrupt):
        chosen.answers(examinee(tmp_path, model, inputs=inputs), [module.Record(**record) for record in records])
    return texts


def as_tuples(rows: list[dict]) -> list[dict]:
    return [{**row, "choices": tuple(row["choices"])} for row in rows]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_question_is_not_among_its_own_examples(tmp_path, model, monkeypatch, elsewhere):
    """Also where the same records lie in another file under other ids, with other spaces or another solution."""
    rows = solutions(6)
    shown = [{"id": f"x{r['id']}", "question": f" {r['question']} ", "answer": "So.\n#### 0"} for r in rows[::-1]]
    texts = asked(model, tmp_path, gsm8k, rows, shown if elsewhere else rows, 3, monkeypatch)
    assert len(texts) == 6
    for row, text in zip(rows, texts, strict=True):
        assert text.count(row["question"]) == 1
        assert text.count("Question: ") == 4
        assert len({line for line in text.split("\n") if line.startswith("Question")}) == 4


OTHER_WRITINGS = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "composed": lambda text: unicodedata.normalize("NFC", text),
    "wide": lambda text: text.translate({place: place + 0xFEE0 for place in range(0x30, 0x7B)}),
    "upper case": str.upper,
    "unseen space": lambda text: text.replace(" ", " \u200b"),
    "space before the mark": lambda text: text.replace("?", " ?"),
    "no mark": lambda text: text.replace("?", ""),
    "curly quotes": lambda text: text.replace("'", "\u2019"),
    "spaced signs": lambda text: text.replace(" + ", "+"),
    "hard spaces": lambda text: text.replace(" ", "\u00a0"),
}


@pytest.mark.parametrize("way", OTHER_WRITINGS)
def test_a_question_written_another_way_is_not_among_its_own_examples(way):
    config = harness.configuration("gsm8k/gsm8k.yaml")
    rows = [{**row, "question": f"In the town's caf\u00e9s, {row['question']}"} for row in solutions(6)]
    change = OTHER_WRITINGS[way]
    shown = [{**row, "id": f"x{row['id']}", "question": change(row["question"])} for row in rows]
    task = harness.task_of("gsm8k", config, rows, shown, 3)
    for row, example in zip(rows, shown, strict=True):
        before = task.fewshot_context(row, 3).rpartition("Question: ")[0]
        assert before.count("Question: ") == 3
        assert f"Question: {example['question']}\n" not in before


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 4?", "3 - 4?"), ("1.5?", "15?"), ("12?", "1 2?"), ("x < y?", "x > y?"), ("5%?", "5?"), ("?", "!")],
)
def test_other_signs_make_another_question(one, other):
    assert harness._question({"question": one}) != harness._question({"question": other})
    options = [{"question": "Which?", "choices": [text, "all"]} for text in (one, other)]
    assert harness._question(options[0]) != harness._question(options[1])


@pytest.mark.parametrize("format", ["letters", "continuation"])
def test_the_first_examples_of_a_subject_leave_the_question_out(tmp_path, model, monkeypatch, format):
    rows = [{**row, "subject": "anatomy"} for row in questions(6)]
    shown = [{**row, "id": f"x{row['id']}", "choices": row["choices"][::-1]} for row in rows]
    texts = asked(model, tmp_path, mmlu, as_tuples(rows), shown, 3, monkeypatch, format=format)
    assert len(texts) == 6 * 4  # one request per option
    for place, text in enumerate(texts):
        others = [row["question"] for row in rows if row is not rows[place // 4]][:3]
        assert [text.find(question) >= 0 for question in others] == [True] * 3
        assert text.count("Which is") == 4
        assert text.count(rows[place // 4]["question"]) == 1


def test_the_same_words_with_other_options_are_another_question(tmp_path, model, monkeypatch):
    rows = [{**row, "subject": "anatomy", "question": "Which is true?"} for row in questions(4)]
    texts = asked(model, tmp_path, mmlu, as_tuples(rows[:1]), rows[1:], 3, monkeypatch)
    assert texts[0].count("Which is true?") == 4


@pytest.mark.parametrize("module", [gsm8k, mmlu])
def test_too_few_examples_are_told(tmp_path, model, module):
    rows = [{**row, "subject": "anatomy"} for row in questions(6)] if module is mmlu else solutions(6)
    records = [module.Record(**row) for row in (as_tuples(rows) if module is mmlu else rows)]

    def ask(shown, count):
        chosen = benchmark(module, fewshot={"data": "own", "split": "test", "count": count})
        inputs = {"fewshot": written(tmp_path / "own.jsonl", shown)}
        chosen.answers(examinee(tmp_path, model, inputs=inputs), records)

    with pytest.raises(RecordError, match=r"own\.jsonl.*: 3 examples, 5 are asked for\. Lower fewshot\.count"):
        ask(rows[:3], 5)
    with pytest.raises(RecordError, match=r'same records\. For 6 of 6 questions \("q?0", for example\) fewer than 6'):
        ask(rows, 6)


def test_a_single_question_among_the_published_examples_stops_nothing(tmp_path, model, monkeypatch, caplog):
    rows = solutions(6)
    texts = asked(model, tmp_path, gsm8k, rows, [*solutions(20)[10:14], rows[2]], 5, monkeypatch)
    assert [text.count("Question: ") for text in texts] == [6, 6, 5, 6, 6, 6]
    assert texts[2].count(rows[2]["question"]) == 1
    assert 'the question "2" is one of them' in caplog.text
