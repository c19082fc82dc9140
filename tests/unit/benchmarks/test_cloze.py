"""Facts asked for without options: what counts as the right answer, and where it stands."""

import json

import pytest

from bulwark.benchmarks.cloze import Benchmark, Record, Settings
from bulwark.errors import RecordError
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


def test_the_miniature_asks_for_each_fact_four_times():
    for split, facts in (("first_half", 16), ("second_half", 16), ("retain", 32)):
        rows = [Record(id=str(n), **row) for n, row in enumerate(records("cloze", split, MiniatureSettings()))]
        assert len({record.question for record in rows}) == len(rows) == 4 * facts
        assert all(record.subject.startswith("retain" if split == "retain" else f"forget_{split}") for record in rows)
