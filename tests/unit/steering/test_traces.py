"""Under ZeRO-3 the order in which parameters are fetched ahead holds in every pass of a screened training."""

from __future__ import annotations

import json

import pytest
import torch
from screening_samples import forgotten_orders, objective_of, policies, screened

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.traces import Traces

STEPS = 6
CHOSEN = {"max_steps": STEPS, "micro_batch_size": 2, "batch_size": 4, "zero_stage": 3}


def trained(folder, name: str, **changes):
    """The number of times that an order was forgotten, and the final weights."""
    objective = objective_of(policies()[name], folder, total=STEPS)
    with forgotten_orders() as forgotten:
        result = screened(None, folder, objective=objective, **CHOSEN | changes)
    return len(forgotten), result.model.state_dict()


@pytest.mark.parametrize(
    ("name", "checkpointing"), [("mask", False), ("inject", True), ("probe", True), ("state", False)]
)
def test_no_order_is_forgotten_and_the_weights_are_the_same(tmp_path, monkeypatch, name, checkpointing):
    held, weights = trained(tmp_path / "held", name, gradient_checkpointing=checkpointing)
    monkeypatch.setattr(Traces, "_enter", lambda self, kind: None)
    forgotten, others = trained(tmp_path / "forgotten", name, gradient_checkpointing=checkpointing)
    assert held == 0
    assert forgotten >= STEPS  # as DeepSpeed is
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []


def test_orders_are_used_and_not_recorded_anew(tmp_path):
    """In the last step every pass follows an order that is complete."""
    objective = objective_of(policies()["inject"], tmp_path, total=STEPS)
    modes = []
    start = objective.start

    def watched(engine, total):
        start(engine, total)
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        engine.module.register_forward_hook(lambda *_: modes.append(coordinator.is_complete_trace()))

    objective.start = watched
    screened(None, tmp_path, objective=objective, **CHOSEN)
    passes = 3  # of a micro-batch: trunk, both losses, what is learned
    assert modes[:passes] == [False] * passes
    assert all(modes[passes : 9 * passes])


def test_plain_steps_between_screened_ones_have_an_order_of_their_own(tmp_path):
    schedule = ScheduleSettings(withdraw_at=3)
    objective = objective_of(policies()["mask"], tmp_path, schedule, total=STEPS)
    with forgotten_orders() as forgotten:
        result = screened(None, tmp_path, objective=objective, **CHOSEN)
    rows = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert 0 < max(row["opt_step"] for row in rows) < STEPS - 1
    assert forgotten == []
    assert result.report.steps == STEPS
