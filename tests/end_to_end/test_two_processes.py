"""A step on two processes under ZeRO-3, started as on two GPUs: the same checkpoint as with one process."""

import json

import pytest
from safetensors.torch import load_file

from bulwark.jobs.job import Job
from bulwark.steps import perform


@pytest.mark.slow
def test_two_processes_under_zero_3_make_the_same_checkpoint(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = finished.folder / "results/checkpoints/miniature/aside/seed0"
    manifest = json.loads((alone / "checkpoint.json").read_text())
    settings = manifest["settings"]
    settings["training"] |= {"zero_stage": 3, "micro_batch_size": settings["training"]["batch_size"] // 2}
    job = Job(
        kind="aside",
        settings=settings,
        parent=manifest["parent"]["path"],
        output=str(tmp_path / "checkpoint" / "checkpoint.json"),
        inputs={name: file["path"] for name, file in manifest["inputs"].items()},
        identity={"model": "miniature", "recipe": "aside", "seed": 0},
        log=str(tmp_path / "log.txt"),
    )
    perform(job, gpus=2)

    together = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert together["training"]["processes"] == 2
    expected = load_file(alone / "model.safetensors")
    found = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() <= 1e-5, name
    assert not (tmp_path / "checkpoint" / "job.json").exists()
