"""A trial whose training diverges has a manifest that says so; any other training that does fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shared_samples import DIVERGES, manifest, part, prepare

from bulwark import seals, steps
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.jobs.sealing import sealed
from bulwark.models import manifests


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
