"""Two processes (gloo) that simulate one attack together end where one process ends, at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stopped_samples import plans, resumed

# In plain descent a gradient that is too small or too large would show.
DESCENT = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant", "max_grad_norm": 0.0, "max_steps": 3}
ONE = DESCENT | {"micro_batch_size": 1}
AVERAGED = ONE | {"optimizer": "schedulefree_adamw", "learning_rate": 1e-3}
INNER = {"steps": 4, "every": 2, "learning_rates": [1e-2], "batch_size": 4, "micro_batch_size": 1}
PREFERENCES = {"inner": INNER, "resistance": {"loss": "dpo", "weight": 2.0}}
TRAININGS = {
    f"entropy_{stage}": {"settings": ONE | {"zero_stage": stage}, "changes": {"inner": INNER}} for stage in (0, 1, 2, 3)
} | {
    "dpo_3": {"settings": ONE | {"zero_stage": 3}, "changes": PREFERENCES},
    "averaged_3": {"settings": AVERAGED | {"zero_stage": 3}, "changes": {"inner": INNER}},
}
RESUMED = resumed(TRAININGS, ["dpo_3", "averaged_3"], at=2)

PROGRAM, PLANS = "tampering_ranks", plans(TRAININGS, RESUMED)


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends(name, folder):
    one, two = (torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True) for ranks in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_record_the_same_losses(name, folder):
    one, two = (json.loads((folder / f"{name}_{ranks}" / "record.json").read_text()) for ranks in (1, 2))
    assert len(one) == len(two) == 3
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4)), key


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_killed_inside_an_attack_go_on_to_the_same_weights(name, folder):
    whole, parts = (folder / f"{run}_2" for run in (name.removesuffix("_resumed"), name))
    assert json.loads((parts / "report.json").read_text())["resumed_at"] == [2]
    weights, others = (torch.load(part / "weights.pt", weights_only=True) for part in (whole, parts))
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []
    assert (parts / "record.json").read_text() == (whole / "record.json").read_text()
