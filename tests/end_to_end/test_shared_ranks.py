"""Trainings that share a parent on two processes: a copy, also of shards, trains to the bit as what was read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shared_samples
import torch
from shared_samples import DIVERGES, loads_of, manifest, part, told, weights
from test_training_ranks import prepare  # noqa: F401  saves the model that is read

from bulwark import steps
from bulwark.jobs import together
from bulwark.jobs.sealing import sealed

STEPS = {"max_steps": 5, "micro_batch_size": 1}
TRAININGS = {
    "whole": {},
    "sharded": {"zero_stage": 3},
    "sharded_adapters": {"zero_stage": 3, "lora": {"rank": 2}},
    "sharded_bfloat16": {"zero_stage": 3, "precision": "bfloat16"},
}

PROGRAM = "shared_ranks"
PLANS = {
    ranks: [{"name": name, "settings": STEPS | training} for name, training in TRAININGS.items()] for ranks in (1, 2)
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_copy_trains_to_the_same_bits(name, ranks, launched: Path):
    read, copied = (
        torch.load(launched / PROGRAM / f"{name}_{ranks}_{number}/weights.pt", weights_only=True) for number in (0, 1)
    )
    assert read.keys() == copied.keys()
    assert [key for key in read if not torch.equal(read[key], copied[key])] == []
    assert json.loads((launched / PROGRAM / f"{name}_{ranks}.json").read_text()) == {"read": 1, "copied": 1}


def test_a_job_on_two_processes_makes_what_jobs_of_their_own_make(tmp_path, monkeypatch):
    """The second of three diverges, after which two other processes are started for the third."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shared_samples.prepare()
    sharded = {"zero_stage": 3, "micro_batch_size": 1}
    parts = [part(recipe, **sharded) for recipe in ("relearn_a", "relearn_b", "relearn_lora")]
    together.perform([parts[0], part("relearn_diverges", **DIVERGES), *parts[1:]], Path("logs/0.json"), gpus=2)
    assert told()["made"] == ["relearn_a", "relearn_b", "relearn_lora"]
    assert told()["failed"]["relearn_diverges"].startswith("Training stopped at step")
    assert loads_of("relearn_lora") == "The parent's weights were read 1 times, copied 1 times."
    made, known = weights("relearn_lora"), manifest("relearn_lora")
    assert known["training"]["processes"] == 2
    Path(parts[2].job.output).unlink()
    with sealed(parts[2].sealing):
        steps.perform(parts[2].job, gpus=2)
    assert weights("relearn_lora") == made
    assert {key: manifest("relearn_lora")[key] for key in ("asked", "sources", "rule", "path")} == {
        key: known[key] for key in ("asked", "sources", "rule", "path")
    }
