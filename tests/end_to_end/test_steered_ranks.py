"""Two processes (gloo) under an intervention train, and record, what one process does, sharded or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stopped_samples import plans, resumed

BASE = {"max_steps": 5, "micro_batch_size": 1, "batch_size": 4}
RISE = {"shape": "rise", "onset": 2}

TRAININGS = {}
for stage in (0, 3):
    settings = BASE | {"zero_stage": stage}
    TRAININGS[f"block_{stage}"] = {"settings": settings, "schedule": RISE, "layers": [3, 1]}
    adaptive = {"site": "o_proj", "adaptive": True, "alpha": 0.5}
    checkpointed = settings | {"gradient_checkpointing": True, "micro_batch_size": 2}
    TRAININGS[f"attention_{stage}"] = {
        "settings": checkpointed,
        "intervention": adaptive,
        "schedule": {"withdraw_at": 3},
    }
    TRAININGS[f"ablated_{stage}"] = {"settings": settings, "ablate": True, "intervention": {"tokens": "all"}}
    TRAININGS[f"embedded_{stage}"] = {"settings": settings, "embedded": True, "schedule": RISE}
TRAININGS["block_2"] = TRAININGS["block_3"] | {"settings": BASE | {"zero_stage": 2}}
RESUMED = resumed(TRAININGS, ["block_3", "attention_0", "embedded_3"], at=3)

PROGRAM, PLANS = "steered_ranks", plans(TRAININGS, RESUMED)


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


def report(folder: Path, name: str, ranks: int) -> dict:
    return json.loads((folder / f"{name}_{ranks}" / "report.json").read_text())


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends_and_record_the_same(name, folder):
    one, two = (torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True) for ranks in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    ours, theirs = report(folder, name, 2), report(folder, name, 1)
    assert [step for step, _ in ours["loss"]] == [1, 2, 3, 4, 5]
    for told in (ours, theirs):
        told["values"] = [loss for _, loss in told["loss"]]
    assert ours["values"] == pytest.approx(theirs["values"], abs=1e-5)
    cosines = ours["steering"]["gradient_cosine"]
    assert cosines == pytest.approx(theirs["steering"]["gradient_cosine"], abs=1e-3)
    assert len(cosines) == 5
    assert ours["steering"]["hidden_norm"] == pytest.approx(theirs["steering"]["hidden_norm"], rel=1e-5)
    assert ours["exposure"] == theirs["exposure"]
    assert (ours["exposure"] is not None) == name.startswith("embedded")


@pytest.mark.parametrize("stage", [0, 3])
def test_the_interventions_do_something(stage, folder):
    losses = {name: report(folder, name, 2)["loss"][0][1] for name in TRAININGS if name.endswith(f"_{stage}")}
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_with_the_same_weights_and_record(name, folder):
    whole, parts = (folder / f"{run}_2" for run in (name.removesuffix("_resumed"), name))
    weights, others = (
        torch.load(whole / "weights.pt", weights_only=True),
        torch.load(parts / "weights.pt", weights_only=True),
    )
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []
    told, again = report(folder, name.removesuffix("_resumed"), 2), report(folder, name, 2)
    assert again.pop("resumed_at") == [2]
    assert told.pop("resumed_at") == []
    assert again == told
