"""Two processes (gloo) forget what one process forgets, sharded or not, also with losses that reach few weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_causal_models import tiny_model
from unlearning_samples import course_of, with_parent

# In plain descent a gradient that is too small or too large would show.
DESCENT = {
    "max_steps": 4, "micro_batch_size": 1, "batch_size": 4,
    "optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0,
}  # fmt: skip
RMU = {"kind": "rmu", "given": {"layer": 2, "blocks": [1, 2], "coefficient": 4.0, "retain_weight": 5.0}}
TRAININGS = {
    **{f"rmu_{stage}": RMU | {"settings": DESCENT | {"zero_stage": stage}} for stage in (0, 2, 3)},
    "rmu_checkpointed_3": RMU | {"settings": DESCENT | {"zero_stage": 3, "gradient_checkpointing": True}},
    "rerouting_3": {
        "kind": "rerouting",
        "given": {"layers": [1, 2], "schedule_steps": 8},
        "settings": DESCENT | {"zero_stage": 3, "learning_rate": 0.01},
    },
    "random_map_2": {"kind": "random_map", "given": {}, "settings": DESCENT | {"zero_stage": 2}},
    "llmu_3": {
        "kind": "llmu",
        "given": {"keep": "divergence", "forget_micro_batch_size": 2},
        "settings": DESCENT | {"zero_stage": 3},
    },
    # Noise is drawn by each rank for itself, so that it is left out.
    "repnoise_3": {
        "kind": "repnoise",
        "given": {"side": "rejected", "beta": 0.0},
        "settings": DESCENT | {"zero_stage": 3},
    },
}

PROGRAM = "forgetting_ranks"
PLANS = {ranks: [{"name": name} | training for name, training in TRAININGS.items()] for ranks in (1, 2)}


def prepare(own: Path) -> None:
    """The frozen model is another than the trained one, or nothing would be to be rerouted or kept at the start."""
    other = tiny_model(layers=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.2
    with_parent(course_of(own, tiny_model(layers=3)), other)


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends(name, folder):
    one, two = (torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True) for ranks in (1, 2))
    start = tiny_model(layers=3).state_dict()
    assert any(not torch.allclose(one[key], start[key], atol=1e-4) for key in one if key in start)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    curves = [torch.tensor(json.loads((folder / f"{name}_{ranks}" / "losses.json").read_text())) for ranks in (1, 2)]
    assert curves[0].shape == (4, 3)
    torch.testing.assert_close(curves[1], curves[0], atol=1e-5, rtol=1e-5)
