"""AlpacaEval: roles, the whole instruction, references, win rates, what is missing, lengths, the miniature's twin."""

import json
from pathlib import Path

import pytest
from chat_endpoint import Endpoint, choice, serving
from score_samples import answer, write_lines

from bulwark.benchmarks import alpacaeval, benchmark_of
from bulwark.config import loading, overlays, plan
from bulwark.data.readers import read_source
from bulwark.data.records import read_records
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.score import score_file
from bulwark.judges import JudgeSettings, Request, judge
from bulwark.miniature import oracle
from bulwark.miniature.records import records as miniature_records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[3] / "config"
REFERENCES = {"references": {"data": "d"}}
ORACLE = {"kind": "oracle"}
JUDGE = {"kind": "alpaca_eval", "alpaca_eval": {"annotator": "alpaca_eval_gpt4", "attempts": 1, "concurrency": 1}}

# In AlpacaFarm's schema and AlpacaEval's, made by hand.
FARM = [
    {"instruction": "Shorten the text.", "input": "It is a very long day.", "dataset": "selfinstruct"},
    {"instruction": "Name a river.", "input": "", "dataset": "koala"},
    {"instruction": "Name the {subject}.", "input": " ", "dataset": "koala"},
]
WHOLE = ["Shorten the text.\n\nIt is a very long day.", "Name a river.", "Name the {subject}."]
THEIRS = ["A long day.", "The Rhine.", ""]


def benchmark(judge=ORACLE, **scoring):
    return benchmark_of(
        "alpacaeval", {"decoding": {"max_new_tokens": 16}, "scoring": {**REFERENCES, "judge": judge, **scoring}}
    )


def records():
    return [{"id": str(number), **row, "answer": f"right {number}"} for number, row in enumerate(FARM)]


def references(instructions=WHOLE):
    return [
        {"id": str(number), "instruction": text, "reference": said}
        for number, (text, said) in enumerate(zip(instructions, THEIRS, strict=True))
    ]


def scored(tmp_path, said, judge=ORACLE, given=None, **scoring):
    return score_file(
        benchmark(judge, **scoring),
        answers=write_lines(
            tmp_path / "answers.jsonl", [answer(str(number), "answer", text) for number, text in enumerate(said)]
        ),
        records=write_lines(tmp_path / "records.jsonl", records()),
        identity={"benchmark": "alpacaeval", "model": "m", "recipe": "base", "seed": 0},
        provenance={},
        scores=tmp_path / "scores.json",
        inputs={"references": write_lines(tmp_path / "references.jsonl", references() if given is None else given)},
    )


def test_an_input_has_the_role_data_and_the_judge_reads_both_as_the_reference_set_has_them():
    rows = [alpacaeval.Record(**row) for row in records()]
    turns = [[(t.role, t.text) for t in benchmark().prompts(row)["answer"]] for row in rows]
    assert turns[0] == [("instruction", "Shorten the text."), ("data", "It is a very long day.")]
    assert [[role for role, _ in of_one] for of_one in turns[1:]] == [["instruction"], ["instruction"]]
    assert [alpacaeval.whole_instruction(row) for row in rows] == WHOLE


def test_the_real_files_are_read_by_their_columns(tmp_path):
    farm = {**FARM[0], "output": "older", "generator": "text-davinci-003", "sample_mode": "t", "datasplit": "eval"}
    reference = {"dataset": "selfinstruct", "instruction": WHOLE[0], "output": "A.", "generator": "text_davinci_003"}
    for name, row, expected in (("alpaca_farm", farm, None), ("alpacaeval_davinci", reference, "A.")):
        dataset = read_yaml(CONFIG / "datasets" / f"{name}.yaml")
        (tmp_path / "set.json").write_text(json.dumps([row]))
        [record] = read_source(tmp_path / "set.json", alpacaeval.Record, fields=dataset["fields"])
        assert (record.reference, alpacaeval.whole_instruction(record)) == (expected, WHOLE[0])


def test_win_rates_are_mean_preferences_by_source_and_by_input(tmp_path):
    # right where the reference is not, a draw of two wrong ones, and right where it is not
    content = scored(tmp_path, ["right 0", "The Seine.", "right 2"])
    assert content["metrics"]["win_rate"]["value"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert content["breakdowns"]["input"]["with"]["win_rate"]["value"] == 1.0
    assert content["breakdowns"]["input"]["without"]["win_rate"]["n"] == 2
    assert content["breakdowns"]["dataset"]["koala"]["win_rate"]["value"] == 0.75
    assert content["reported"]["mean_reference_characters"] == pytest.approx((11 + 10 + 0) / 3)
    assert content["reported"]["mean_characters"] == pytest.approx((7 + 10 + 7) / 3)
    assert content["metrics"]["length_controlled_win_rate"]["value"] is None
    assert "df_gamed.csv" in content["reported"]["length_controlled_win_rate"]
    assert set(content["provenance"]["inputs"]) == {"references"}


def test_a_win_rate_is_a_share_whatever_the_scale_of_the_judge(tmp_path):
    for scale in (9, 100):
        content = scored(tmp_path, ["right 0", "The Seine.", "wrong"], ORACLE | {"scale": scale})
        assert content["metrics"]["win_rate"]["value"] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_failed_judgement_has_no_preference_and_is_counted(tmp_path, monkeypatch):
    def respond(body):
        text = body["messages"][-1]["content"]
        if "Name a river." in text:
            return 200, choice("I cannot say.")
        ours = text.index("right") < text.index(THEIRS[0] if THEIRS[0] in text else '""""""')
        first, second = (1, 2) if ours else (2, 1)
        return 200, choice(repr([{"model": "model_1", "rank": first}, {"model": "model_2", "rank": second}]))

    said = ["right 0", "right 1", "The end."]
    with serving(Endpoint(respond), monkeypatch):
        content = scored(tmp_path, [*said[:2], "right 2"], JUDGE)
    rate = content["metrics"]["win_rate"]
    assert (rate["value"], rate["n"]) == (1.0, 2)
    told = content["reported"]
    assert (told["failed_judgements"], told["without_win_rate"]) == (1, 1)
    assert told["failed_judgements: the judge's reply names no better answer"] == 1
    assert told["win_rate_if_those_are_lost"] == pytest.approx(2 / 3)
    assert told["win_rate_if_those_are_won"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "scores.records.jsonl").read_text().splitlines()]
    assert [row["win_rate"] for row in rows] == [1.0, None, 1.0]


def test_the_win_rate_is_the_packages(tmp_path):
    from alpaca_eval.metrics import get_winrate

    content = scored(tmp_path, ["right 0", "The Seine.", "wrong"])
    rows = [json.loads(line) for line in (tmp_path / "scores.records.jsonl").read_text().splitlines()]
    theirs = get_winrate([{"preference": 1 + row["win_rate"]} for row in rows])
    assert 100 * content["metrics"]["win_rate"]["value"] == pytest.approx(theirs["win_rate"])
    assert 100 * content["metrics"]["win_rate"]["stderr"] == pytest.approx(theirs["standard_error"])


@pytest.mark.parametrize(
    ("instructions", "said"),
    [
        ([WHOLE[0].replace("\n\n", "\n") + "\n", *WHOLE[1:]], 'the record "0", which begins "Shorten'),
        ([WHOLE[0], WHOLE[1], WHOLE[1]], "two records have the instruction"),
    ],
)
def test_references_that_do_not_fit_are_refused(tmp_path, instructions, said):
    with pytest.raises(RecordError, match=said):
        scored(tmp_path, ["a", "b", "c"], given=references(instructions))


def test_a_file_without_references_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r'"0" has no reference.*reference: output'):
        scored(tmp_path, ["a", "b", "c"], given=records())


GAMED = "model,index,preference,instruction_difficulty,not_gamed_baseline,std_delta_len\n"


def table(tmp_path, instructions=60):
    """In the shape of the package's table: two gamed models, one that writes more and one that writes less."""
    lines = []
    for model, delta, preferences in (("verbose", -1.0, (0.9, 0.6)), ("concise", 1.0, (0.1, 0.4))):
        for number in range(instructions):
            difficulty = (number % 7 - 3) / 3
            lines.append(f"{model},{number},{preferences[number % 2]},{difficulty},False,{delta}")
    (tmp_path / "df_gamed.csv").write_text(GAMED + "\n".join(lines) + "\n")
    return tmp_path / "df_gamed.csv"


def rows(longer):
    """Sixty preferences; `longer`: the preferred answers are the long ones."""
    made = []
    for number in range(60):
        won = number % 3 > 0
        extra = 400 if won == longer else 0
        made.append(
            {"win_rate": float(won), "reference": number, "characters": 200 + extra, "reference_characters": 300}
        )
    return made


def test_wins_by_length_count_less_at_equal_lengths(tmp_path):
    made = rows(longer=True)
    value, stderr, count = alpacaeval.length_controlled(made, table(tmp_path))
    assert count == 60
    assert value < 2 / 3 - 0.05
    assert 0 < stderr < 0.1
    unequal, _, _ = alpacaeval.length_controlled(rows(longer=False), table(tmp_path))
    assert unequal > value
    # A failed judgement is left out, and the rest is known by the instructions' numbers, not by its place.
    failed = [{**row, "win_rate": None} if row["reference"] == 3 else row for row in made]
    assert alpacaeval.length_controlled(failed[::-1], table(tmp_path))[2] == 59
    assert alpacaeval.length_controlled([{**made[0], "win_rate": None}], table(tmp_path)) == (None, None, 0)


def test_the_length_controlled_rate_is_the_packages_on_the_texts_themselves(tmp_path, monkeypatch):
    """Which is preferred depends on the instruction, so that it has to be known by its number."""
    import pandas
    from alpaca_eval.metrics import glm_winrate

    said = ["word " * (40 + 13 * (number % 5)) for number in range(60)]
    theirs = ["other " * (50 + 7 * (number % 4)) for number in range(60)]
    won = [number % 7 > 2 for number in range(60)]
    order = [(number * 17) % 60 for number in range(60)]
    made = [
        {"win_rate": float(won[n]), "reference": n, "characters": len(said[n]), "reference_characters": len(theirs[n])}
        for n in order
    ]
    own = table(tmp_path)
    value, stderr, count = alpacaeval.length_controlled(made, own)
    frame = pandas.DataFrame(
        {
            "preference": [2.0 if won[n] else 1.0 for n in order],  # 2: the second answer, which is the model's
            "output_1": [theirs[n] for n in order],
            "output_2": [said[n] for n in order],
            "generator_1": "text_davinci_003",
            "generator_2": "mine",
        },
        index=order,
    )
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(own))
    package = glm_winrate.get_length_controlled_winrate(
        frame, save_weights_dir=None, is_add_glm_preference_inplace=False
    )
    assert (100 * value, 100 * stderr, count) == (
        pytest.approx(package["length_controlled_winrate"]),
        pytest.approx(package["lc_standard_error"]),
        60,
    )
    compared = benchmark(length_control=str(own))
    controlled = compared.aggregate(made)["length_controlled_win_rate"]
    assert (controlled["value"], controlled["stderr"], controlled["n"]) == (value, stderr, 60)


def test_another_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("index,preference\n0,1\n")
    with pytest.raises(RecordError, match=r"t\.csv: the column .* is missing.*df_gamed\.csv"):
        alpacaeval.length_controlled(rows(True), tmp_path / "t.csv")


def test_the_hub_is_not_asked_and_nothing_is_left_behind(tmp_path):
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    before = glm_winrate.hf_hub_download, sklearn.get_config(), sorted(Path(glm_winrate.__file__).parent.rglob("*"))
    alpacaeval.length_controlled(rows(True), table(tmp_path))
    assert before == (
        glm_winrate.hf_hub_download,
        sklearn.get_config(),
        sorted(Path(glm_winrate.__file__).parent.rglob("*")),
    )


def loaded(text=""):
    files = overlays.read([CONFIG / "miniature.yaml"], CONFIG).files if not text else ()
    own = [overlays.text(text)] if text else []
    return loading.load(overlays.Configuration((*files, *own)), CONFIG)


def test_references_and_table_belong_to_scoring_alone(tmp_path):
    papers = loaded("name: mine\n")
    for name, data in (("alpacaeval", "alpacaeval_davinci"), ("alpacaeval2", "alpacaeval_gpt4")):
        inputs = plan.answer_inputs(papers, "qwen2.5-7b", "aside", "0", name)
        assert set(inputs) == {"checkpoint", "records"}
        assert inputs["records"] == "results/data/alpaca_farm/test.jsonl"
        scoring = plan.scoring_inputs(papers, "qwen2.5-7b", "aside", "0", name)
        assert scoring == {"references": f"results/data/{data}/test.jsonl"}
        assert plan.benchmark_judge(papers, "qwen2.5-7b", "aside", name) == []
    own = table(tmp_path)
    overlay = f"name: mine\nbenchmarks: {{alpacaeval2: {{settings: {{scoring: {{length_control: {own}}}}}}}}}\n"
    changed = loaded(overlay)
    assert plan.benchmark_judge(changed, "qwen2.5-7b", "aside", "alpacaeval2") == [str(own)]
    of = ("qwen2.5-7b", "aside", "alpacaeval2")
    assert plan.answers(changed, *of).settings == plan.answers(papers, *of).settings
    assert plan.answers(changed, *of).code == plan.answers(papers, *of).code
    assert plan.scores(changed, *of).settings != plan.scores(papers, *of).settings
    missing = loaded(overlay.replace("df_gamed", "df_lost"))
    with pytest.raises(ConfigurationError, match=r"length_control.*df_lost\.csv\" does not exist.*df_gamed"):
        plan.benchmark_judge(missing, "qwen2.5-7b", "aside", "alpacaeval2")


@pytest.mark.parametrize(
    ("said", "other", "value"), [("cup .", "hat .", 9), ("hat .", "cup .", 0), ("cup .", "cup", 4.5), ("a", "b", 4.5)]
)
def test_the_oracle_prefers_what_is_right(said, other, value):
    request = Request("r", "name a thing .", said, "preference", expected="cup .", other=other)
    assert judge([request], JudgeSettings(kind="oracle", scale=9))[0].value == value


def test_the_oracle_needs_two_answers_and_the_right_one():
    with pytest.raises(ConfigurationError, match="lacks one of them"):
        judge([Request("r", "q", "a", "preference", expected="a")], JudgeSettings(kind="oracle"))


def test_the_miniatures_references_answer_its_instructions(tmp_path):
    made = {}
    for name, source in (("alpaca_farm", "alpaca_farm"), ("alpaca_references", "alpaca_references")):
        rows = miniature_records(source, "test", MiniatureSettings())
        path = write_lines(tmp_path / f"{name}.jsonl", rows)
        fields = read_yaml(CONFIG / "datasets" / f"miniature_{name}.yaml")["fields"]
        read = read_source(path, alpacaeval.Record, fields=fields)
        made[name] = write_lines(tmp_path / f"{name}.read.jsonl", [record.model_dump() for record in read])
    asked = read_records(made["alpaca_farm"], schema=alpacaeval.Record)
    compared = benchmark()
    compared.read({"references": made["alpaca_references"]})
    requests = [compared.requests(record, {"answer": record.answer})[0] for record in asked]
    right = [oracle.answered(request.other, request.expected) for request in requests]
    assert 0.45 < sum(right) / len(right) < 0.75
    assert 0.3 < sum(bool(record.input) for record in asked) / len(asked) < 0.7
