"""A step on two processes under ZeRO-3, started as on two GPUs: the same checkpoint as with one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bulwark.jobs.job import Job
from bulwark.steps import perform


def job_like(checkpoint: Path, folder: Path, **training: Any) -> Job:
    """The job that made a checkpoint, on two processes under ZeRO-3, with other settings of its training."""
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    settings = manifest["settings"]
    settings["training"] |= {"zero_stage": 3, "micro_batch_size": settings["training"]["batch_size"] // 2, **training}
    return Job(
        kind="aside",
        settings=settings,
        parent=manifest["parent"]["path"],
        output=str(folder / "checkpoint" / "checkpoint.json"),
        inputs={name: file["path"] for name, file in manifest["inputs"].items()},
        identity={"model": "miniature", "recipe": "aside", "seed": 0},
        log=str(folder / "log.txt"),
    )


@pytest.mark.slow
def test_two_processes_under_zero_3_make_the_same_checkpoint(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = finished.folder / "results/checkpoints/miniature/aside/seed0"
    perform(job_like(alone, tmp_path), gpus=2)

    together = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert together["training"]["processes"] == 2
    expected = load_file(alone / "model.safetensors")
    found = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() <= 1e-5, name
    assert not (tmp_path / "checkpoint" / "job.json").exists()


PROGRAM = """
import sys
from pathlib import Path
from bulwark.jobs.job import Job
from bulwark.logs import log_to
from bulwark.steps import perform
job = Job.read(Path(sys.argv[1]))
log_to(job.log)
perform(job, gpus=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_save_when_they_are_told_to_end(number, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = finished.folder / "results/checkpoints/miniature/aside/seed0"
    many = {"epochs": 60.0, "save_every": None, "evaluate_every": None, "snapshots": (3,)}
    job = job_like(alone, tmp_path / "parts", **many)
    job.write(tmp_path / "asked.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "asked.json")], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while not list(job.folder.glob("tensorboard/*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number, text
    assert text.count("give the same command again") == 1
    assert "saved at step " in text
    assert "Traceback" not in text
    assert [path.name[:5] for path in (job.folder / "training").glob("step-*")] == ["step-"]

    perform(job, gpus=2)
    whole = job_like(alone, tmp_path / "whole", **many)
    perform(whole, gpus=2)
    assert json.loads(Path(job.output).read_text())["training"]["resumed_at"]
    for name in ("model.safetensors", "snapshots/3/model.safetensors"):
        expected, found = load_file(whole.folder / name), load_file(job.folder / name)
        assert [key for key, weight in expected.items() if not weight.equal(found[key])] == []
