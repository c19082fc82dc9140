"""Data sets that are made of others: what the configuration takes, and what a plan asks for."""

from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
WHOLE = "{miniature_retain: all, miniature_instructions: 0.5}"
SPLITS = "{train: train, validation: validation}"


@pytest.fixture
def loaded(tmp_path):
    """The configuration with a data set more."""

    def load(mixture=WHOLE, splits=SPLITS, kind="mixture", rest=""):
        overlay = tmp_path / "mine.yaml"
        overlay.write_text(
            f"name: mine\ndatasets:\n  own:\n    kind: {kind}\n    splits: {splits}\n{rest}"
            f"    source: {{mixture: {mixture}}}\n",
            encoding="utf-8",
        )
        return loading.load(overlays.read([str(overlay)], CONFIG), CONFIG)

    return load


def test_a_mixture_is_made_of_the_same_split_of_its_data_sets(loaded):
    known = loaded()
    files = [f"results/data/{name}/train.jsonl" for name in ("miniature_retain", "miniature_instructions")]
    assert plan.records_files(known, "own", "train") == files
    assert plan.records_recipe(known, "own", "train")["dataset"]["source"]["mixture"] == {
        "miniature_retain": "all",
        "miniature_instructions": 0.5,
    }
    other = plan.records_recipe(known, "miniature_retain", "train")["code"]
    assert plan.records_recipe(known, "own", "train")["code"] != other
    with pytest.raises(ConfigurationError, match=r'"trian".*"train"'):
        plan.records_files(known, "own", "trian")


@pytest.mark.parametrize("name", ["chem_forget", "ood_forget", "economics"])
def test_what_nobody_has_published_is_the_users_to_bring(name, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{name.replace('_', '-')}.jsonl"
    with pytest.raises(ConfigurationError, match=rf'{name}\.yaml.*"{file.name}".* does not exist'):
        plan.records_files(loaded(), name, "train")
    file.write_text('{"text": "a chunk"}\n', encoding="utf-8")
    assert plan.records_files(loaded(), name, "train") == [file.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": "{miniature_retain: 0.5, miniature_instructions: all}"}, "what multiples count from"),
        ({"mixture": "{miniature_retain: all}"}, "mixture"),
        ({"mixture": "{miniature_retain: all, miniature_instructions: 0}"}, "mixture.miniature_instructions"),
        ({"mixture": "{miniature_retain: all, miniature_instructoins: 1}"}, '"miniature_instructions"'),
        ({"mixture": "{miniature_retain: all, miniature_preference: all}"}, 'the kind "preference"'),
        ({"mixture": "{miniature_retain: all, bio_forget: all}"}, 'the kind "mixture"'),
        ({"splits": "{train: 0.8}"}, "name of a split that all its data sets have"),
        ({"splits": "{train: held_out}"}, 'split of the dataset "miniature_retain"'),
        ({"kind": "conversation"}, "go together"),
        ({"rest": "    longer_than: 5\n"}, "for passages"),
    ],
)
def test_what_no_mixture_can_be_made_of_is_told(loaded, changes, message):
    with pytest.raises(ConfigurationError) as error:
        loaded(**changes)
    assert message in str(error.value)
    assert "datasets.own" in str(error.value)
