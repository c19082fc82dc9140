"""What a step took: read from its manifest, of every kind of step, and never made up."""

import json

import pytest

from bulwark import analyses
from bulwark.errors import RecordError
from bulwark.models.manifests import write_manifest
from bulwark.steps import heretic, sft

IDENTITY = {"benchmark": "job_time", "model": "m", "recipe": "tar+heretic", "seed": 1}


def analysed(folder, **told):
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder / "checkpoint.json", {"kind": "heretic", "weights": ".", "provenance": {}, **told})
    made = {"checkpoint": folder / "checkpoint.json", "module": "job_time", "settings": {}, "identity": IDENTITY}
    analyses.analyse_file(**made, scores=folder / "job_time.json")
    return json.loads((folder / "job_time.json").read_text(encoding="utf-8"))


def test_it_is_the_wall_time_of_the_job(tmp_path):
    metric = analysed(tmp_path, wall_seconds=12.5)["metrics"]["seconds"]
    assert metric["value"] == 12.5
    assert metric["higher_is_better"] is None


def test_a_checkpoint_that_does_not_say_is_refused(tmp_path):
    with pytest.raises(RecordError, match="does not say how long it took"):
        analysed(tmp_path)


def test_every_step_has_it_and_the_base_model_has_not():
    for step in (heretic, sft):
        assert analyses.module_of("job_time").applies(step)
    assert not analyses.applies("job_time", None)
