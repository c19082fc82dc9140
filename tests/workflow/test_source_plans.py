"""What a plan reads from outside is looked at before any job, whatever results are there already."""

import json

import pytest

OVERLAY = """name: mine
datasets:
  own:
    kind: conversation
    format: alpaca
    source: {path: rows.jsonl}
    splits: {train: 0.5, validation: 0.5}
models:
  mine:
    source: {path: my-model}
    template: chat
    resources: {train: {hours: 0.1, mem_gb: 4}, generate: {hours: 0.1, mem_gb: 4}}
"""
RECORDS = "results/data/own/train.jsonl"
MODEL = "results/models/mine/model.json"


@pytest.fixture
def own(checkout):
    """A copy with a user's data and model, and an overlay that names them."""
    row = {"instruction": "Name a city.", "output": "Oslo"}
    (checkout.folder / "rows.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    (checkout.folder / "mine.yaml").write_text(OVERLAY)
    return checkout


def refused(own, *arguments) -> str:
    done = own.snakemake(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout
    assert "Nothing to be done" not in done.stdout
    return done.stdout


def test_a_missing_source_is_told_though_its_result_is_there(own):
    ask = ("--configfile", "mine.yaml", "--cores", "1", "--quiet", "rules", "--", RECORDS)
    own.snakemake(*ask)
    assert (own.folder / RECORDS).is_file()
    overlay = OVERLAY.replace("rows.jsonl", "rwos.jsonl")
    (own.folder / "mine.yaml").write_text(overlay)
    for arguments in (ask, ("--dry-run", *ask)):
        message = refused(own, *arguments)
        assert 'mine.yaml:6, datasets.own.source.path: "rwos.jsonl"' in message
        assert 'Did you mean "rows.jsonl"?' in message


def test_a_missing_model_is_told_though_its_results_are_there(own):
    """Also where only a score is asked for that is there, and the model stands far behind it."""
    for path in (MODEL, "results/scores/mine/base/seed0/sep.json"):
        (own.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (own.folder / path).write_text("{}")
        message = refused(own, "--dry-run", "--configfile", "mine.yaml", "--", path)
        assert 'mine.yaml:10, models.mine.source.path: "my-model"' in message


def test_records_of_another_form_are_told_before_any_job(own):
    (own.folder / "rows.jsonl").write_text(json.dumps({"instruction": "Name a city.", "answer": "Oslo"}) + "\n")
    message = refused(own, "--cores", "1", "--configfile", "mine.yaml", "--", RECORDS)
    assert 'rows.jsonl, line 1: the field "output" is missing' in message
    assert not (own.folder / RECORDS).exists()
