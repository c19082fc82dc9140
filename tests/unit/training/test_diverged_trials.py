"""A trial whose training diverges has a manifest that says so; any other training that does fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shared_samples import DIVERGES, manifest, part, prepare

from bulwark import seals, steps
from bulwark.analyses import analyse_file
from bulwark.benchmarks import benchmark_of
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.evaluation.answer import answer
from bulwark.evaluation.score import score_file
from bulwark.jobs.sealing import sealed
from bulwark.models import manifests
from bulwark.reporting.results import Cell


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare()


def diverging(recipe, **identity):
    made = part(recipe, **DIVERGES)
    return replace(made.job, identity=made.job.identity | identity), made.sealing


def test_a_trial_that_diverges_is_a_result_without_a_model(place):
    job, sealing = diverging("relearn.3", trial={"training.learning_rate": 1e30})
    output = Path(job.output)
    output.parent.mkdir(parents=True)
    (output.parent / "model.safetensors").write_text("of an earlier training")
    with sealed(sealing):
        steps.perform(job)
    made = manifest("relearn.3")
    assert made["diverged"].startswith("Training stopped at step")
    assert "state" not in made["diverged"], "which is gone"
    assert (made["trial"], made["files"]) == ({"training.learning_rate": 1e30}, [])
    assert (made["asked"], made["recipe"], made["kind"]) == (sealing.asked, "relearn.3", "relearn")
    assert [path.name for path in output.parent.iterdir() if path.name != "tensorboard"] == ["checkpoint.json"]
    assert seals.damage(output) == ""
    with pytest.raises(CheckpointError, match=r"relearn\.3.*diverged, so there is no model\. Training stopped"):
        manifests.open_manifest(output)


def test_of_a_trial_that_diverged_everything_measured_is_null(place):
    """So that a table over many trials can be made, which says so."""
    job, sealing = diverging("relearn.3", trial={"training.learning_rate": 1e30})
    with sealed(sealing):
        steps.perform(job)
    records = Path("tasks.jsonl")
    task = {"id": "0", "instruction": "What colour?", "input": "The cup is red.", "output": "red", "kind": "colour"}
    records.write_text(json.dumps(task) + "\n")
    benchmark = benchmark_of("tasks", {"decoding": {"do_sample": False, "max_new_tokens": 4}})
    answers, provenance, scores = Path("tasks.answers.jsonl"), Path("tasks.provenance.json"), Path("tasks.json")
    answer(
        Path(job.output), records, benchmark, seed=0, dtype="float32", threads=1, answers=answers, provenance=provenance
    )
    identity = {"benchmark": "tasks", "model": "m", "recipe": "relearn.3", "seed": 0}
    score_file(
        benchmark, answers=answers, records=records, identity=identity, provenance=provenance, scores=scores,
        checkpoint=Path(job.output),
    )  # fmt: skip
    cell = Cell("m", "relearn.3", 0, "tasks", scores)
    assert cell.diverged
    assert cell.rows == []
    assert cell.metric("accuracy") == {
        "value": None, "stderr": None, "interval": None, "n": 0, "higher_is_better": True
    }  # fmt: skip
    assert cell.content["reported"]["diverged"].startswith("Training stopped at step")
    spent = Path("compute.json")
    made = analyse_file(
        checkpoint=Path(job.output), module="compute", settings={}, identity=identity | {"benchmark": "compute"},
        scores=spent,
    )  # fmt: skip
    assert made["metrics"]["flops"]["value"] is None
    assert "diverged" in json.loads(spent.read_text())["reported"]


def test_what_is_no_trial_fails(place):
    job, sealing = diverging("relearn")
    with pytest.raises(BulwarkError, match="Training stopped at step") as failed, sealed(sealing):
        steps.perform(job)
    assert failed.value.diverged
    assert not Path(job.output).exists()


def test_another_failure_of_a_trial_is_one(place):
    job, _ = diverging("relearn.3", trial={"training.learning_rate": 1e30})
    Path(job.inputs["train"]).write_text(json.dumps({"id": "0"}) + "\n")
    with pytest.raises(BulwarkError) as failed:
        steps.perform(job)
    assert not failed.value.diverged
    assert not Path(job.output).exists()
