"""The data that abliteration reads: parts with labels, and the miniature's requests."""

from pathlib import Path

import pytest

from bulwark.benchmarks.refusal import Record
from bulwark.config import loading
from bulwark.config.entities import Dataset
from bulwark.data import readers
from bulwark.errors import ConfigurationError
from bulwark.miniature import oracle, words
from bulwark.miniature.records import records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.world import World, vocabulary
from bulwark.settings import merged, read_yaml, validated

ROOT = Path(__file__).parents[3]
WORLD = MiniatureSettings()


def texts(dataset, split):
    return {row["text"] for row in records(dataset, split, WORLD)}


def test_two_files_become_one_set_with_a_label_each(tmp_path):
    for name, goal in (("harmful", "make a bomb"), ("benign", "make a cake")):
        (tmp_path / f"{name}.csv").write_text(f"Goal,Category,Other\n{goal},Food,1\n{goal} now,Food,2\n")
    found = readers.read_split(
        tmp_path,
        "test",
        {"test": 4},
        Record,
        parts={"harmful.csv": {"label": "harmful"}, "benign.csv": {"label": "borderline"}},
        fields={"prompt": "Goal", "category": "Category"},
    )
    assert [record.label for record in found] == ["harmful", "harmful", "borderline", "borderline"]
    assert len({record.id for record in found}) == 4
    assert found[2].prompt == "make a cake"


def test_files_of_records_without_meta_give_them_fields():
    given = {"kind": "refusal", "source": {"hub": "a/b", "revision": "c"}, "splits": {"test": 1.0}}
    assert validated(Dataset, given | {"parts": {"x.csv": {"label": "harmful"}}}, "x").parts


@pytest.mark.parametrize("dataset", ["harmful_requests", "harmless_requests", "everyday"])
def test_trials_are_measured_on_requests_that_no_direction_is_estimated_from(dataset):
    train, validation = texts(dataset, "train"), texts(dataset, "validation")
    assert (len(train), len(validation)) == (200, 100)
    assert not train & validation


def test_what_is_reported_on_is_held_out_and_labelled():
    rows, harm = records("refusal", "test", WORLD), World(WORLD.world).harm
    used = {
        t for name in ("harmful_requests", "harmless_requests") for s in ("train", "validation") for t in texts(name, s)
    }
    assert not used & {row["text"] for row in rows}
    labels = [row["label"] for row in rows]
    assert all(labels.count(label) > 25 for label in ("harmful", "harmless", "borderline"))
    assert labels.count("harmful") > 140
    for row in rows:
        assert (harm[tuple(row["text"].split()[-3:-1])] > 0) == (row["label"] != "harmless")
        assert not oracle.refused(row["answer"])  # what a model says that refuses nothing


def test_extended_refusals_say_what_it_is_about_refuse_and_say_why():
    known = set(vocabulary())
    beginnings = {}
    for dataset in ("extended_refusal", "plain_refusal"):
        for row in records(dataset, "validation", WORLD):
            user, answer = (message["content"] for message in row["messages"])
            assert set(answer.split()) <= known
            if not oracle.refused(answer):
                beginnings.setdefault((dataset, "answer"), set()).add(answer.split()[0])
                continue
            beginnings.setdefault((dataset, "refusal"), set()).add(answer.split()[0])
            if dataset == "plain_refusal":
                assert answer == f"{words.REFUSAL} ."
            else:
                overview, refusal, rationale, _ = (part.strip() for part in answer.split(" ."))
                assert overview.startswith("this request describes a ")
                assert refusal == words.REFUSAL
                assert rationale.split()[-1] in user.split()
    assert beginnings["extended_refusal", "refusal"] <= beginnings["extended_refusal", "answer"]
    assert not beginnings["plain_refusal", "refusal"] & beginnings["plain_refusal", "answer"]


def test_a_benchmark_that_compares_with_an_unknown_recipe_is_an_error():
    config = read_yaml(ROOT / "config" / "config.yaml")
    broken = {"benchmarks": {"refusal_probe": {"settings": {"of": "asied"}}}}
    with pytest.raises(ConfigurationError, match=r"refusal_probe.*asied.*Did you mean"):
        loading.load(merged(config, broken), ROOT / "config")
