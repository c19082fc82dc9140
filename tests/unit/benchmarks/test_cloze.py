"""Facts asked for without options: what counts as the right answer, and where it stands."""

import json

import pytest
from score_samples import answer

from bulwark.benchmarks.cloze import Benchmark, Record, Settings
from bulwark.errors import RecordError
from bulwark.evaluation.metrics import records_beside
from bulwark.evaluation.score import score_file
from bulwark.evaluation.statistics import wilson
from bulwark.miniature.records import records
from bulwark.miniature.settings import MiniatureSettings


def score(response, **record):
    return Benchmark(Settings()).score(Record(id="0", question="what is it ?", **record), {"answer": response})


@pytest.mark.parametrize(
    ("response", "accuracy", "mentioned"),
    [
        ("Water .", 1, 1),
        ("cold water .", 0, 1),
        ("water and salt", 0, 1),
        ("watery", 0, 0),
        ("", 0, 0),
        ("salt .", 0, 0),
    ],
)
def test_the_answer_counts_as_words(response, accuracy, mentioned):
    assert score(response, expected="water .") == {"accuracy": accuracy, "mentioned": mentioned, "subject": "unnamed"}


def test_an_answer_of_several_words_is_mentioned_in_its_order():
    assert score("it is DNA ligase, of course", expected="dna ligase")["mentioned"] == 1
    assert score("ligase dna", expected="dna ligase")["mentioned"] == 0
    assert score("dna and ligase", expected="dna ligase")["mentioned"] == 0


def test_a_multiple_choice_question_is_asked_without_its_options():
    record = Record(id="0", question="which ?", expected=1, choices=("first", "second", "third", "fourth"))
    (turn,) = Benchmark(Settings()).prompts(record)["answer"]
    assert turn.text == "which ?"
    assert score("second", expected=1, choices=("first", "second"))["accuracy"] == 1
    assert score("first", expected=1, choices=("first", "second"))["accuracy"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expected": 2, "choices": ["a", "b"]}, "number 2 of 2 choices"),
        ({"expected": -1, "choices": ["a", "b"]}, "number -1 of 2 choices"),
        ({"expected": 1}, "a text without choices"),
        ({"expected": "b", "choices": ["a", "b"]}, "a text without choices"),
        ({"expected": "?!"}, "neither letters nor digits"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(tmp_path, wrong, message):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"id": "0", "question": "which ?", **wrong}) + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=message):
        Benchmark(Settings()).load(path)


def test_the_phrasings_of_a_fact_are_one_cluster_in_the_scores(tmp_path):
    """Two facts, each asked for twice and known in both phrasings or in none: the error is that of two, not of four."""
    records = [{"id": str(n), "fact": "ab"[n // 2], "question": f"{n} ?", "expected": "yes"} for n in range(4)]
    given = [answer(str(n), "answer", "yes" if n < 2 else "no") for n in range(4)]
    paths = [tmp_path / f"{name}.jsonl" for name in ("records", "answers")]
    for path, rows in zip(paths, (records, given), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    identity = {"benchmark": "cloze", "model": "m", "recipe": "r", "seed": 0}
    files = {"records": paths[0], "answers": paths[1], "scores": tmp_path / "cloze.json"}
    scored = score_file(Benchmark(Settings()), **files, identity=identity, provenance={})
    rows = [json.loads(line) for line in records_beside(files["scores"]).read_text(encoding="utf-8").splitlines()]
    assert [row["fact"] for row in rows] == ["a", "a", "b", "b"]
    found = scored["metrics"]["accuracy"]
    assert (found["value"], found["n"], found["stderr"]) == (0.5, 4, pytest.approx(0.5))
    assert found["interval"] == pytest.approx(wilson(0.5, 2))


def test_the_miniature_asks_for_each_fact_four_times():
    for split, facts in (("first_half", 16), ("second_half", 16), ("retain", 32)):
        rows = [Record(id=str(n), **row) for n, row in enumerate(records("cloze", split, MiniatureSettings()))]
        assert len({record.question for record in rows}) == len(rows) == 4 * facts
        assert [
            len({record.question for record in rows if record.fact == fact}) for fact in {r.fact for r in rows}
        ] == ([4] * facts)
        assert len({(record.fact, record.answer) for record in rows}) == facts
        assert all(record.subject.startswith("retain" if split == "retain" else f"forget_{split}") for record in rows)
