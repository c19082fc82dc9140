"""Snapshots: the weights of a training at a step, whatever happens around them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_training_state import model_of, same_bits
from training_samples import settings, trained

from bulwark.errors import BulwarkError
from bulwark.training import engine as engines
from bulwark.training.objectives import Objective


class _Interrupted(Exception):
    pass


class _Seen(Objective):
    """Copies the weights after some steps, and stops in the middle of another."""

    def __init__(self, steps: tuple[int, ...] = (), stop: int | None = None) -> None:
        self.steps, self.stop, self.seen, self.count = steps, stop, {}, 0

    def after_backward(self, engine, step, total):
        if step == self.stop:
            raise _Interrupted

    def after_step(self, engine, step, total):
        self.count = step + 1
        if self.count in self.steps:
            weights = engines.gather_weights(engine)
            merged = None
            if hasattr(engine.module, "merge_and_unload") and not engine.zero_optimization():
                merged = copy.deepcopy(engine.module).merge_and_unload().state_dict()
            self.seen[self.count] = merged or weights

    def snapshot(self):
        return {"count": self.count}


def test_the_report_says_what_each_snapshot_had_cost(tmp_path):
    """As much as a training that ends there, also where the run was killed on the way."""
    with pytest.raises(_Interrupted):
        snapshots(tmp_path / "parts", _Seen(stop=4), save_every=2)
    for folder in ("whole", "parts"):
        report = snapshots(tmp_path / folder, _Seen())[0].report
        assert [told["steps"] for told in report.spent] == [3, 5, 7]
        assert (report.spent[-1]["tokens"], report.spent[-1]["target_tokens"]) == (report.tokens, report.target_tokens)
        assert [told["seconds"] for told in report.spent] == sorted(told["seconds"] for told in report.spent)
        short = trained(model_of("ise"), tmp_path / f"{folder}_short", max_steps=3).report
        assert (report.spent[0]["tokens"], report.spent[0]["target_tokens"]) == (short.tokens, short.target_tokens)


def snapshots(folder: Path, objective: Objective, method: str = "ise", **changes):
    result = trained(model_of(method), folder, objective=objective, max_steps=7, snapshots=(3, 5, 7), **changes)
    kept = {step: (copy.deepcopy(model), observed) for step, model, observed in result.snapshots}
    return result, kept


@pytest.mark.parametrize(
    "changes",
    [{}, {"zero_stage": 3}, {"precision": "bfloat16"}, {"lora": {"rank": 2, "dropout": 0.2}}, {"keep_best": True}],
    ids=str,
)
def test_a_snapshot_has_the_weights_of_its_step_also_after_an_interruption(changes, tmp_path):
    seen = _Seen((3, 5, 7))
    snapshots(tmp_path / "whole", seen, **changes)
    with pytest.raises(_Interrupted):
        snapshots(tmp_path / "parts", _Seen(stop=4), save_every=2, **changes)
    result, kept = snapshots(tmp_path / "parts", _Seen(), save_every=2, **changes)
    assert result.report.resumed_at == [4]
    assert list(kept) == [3, 5, 7]
    for step, (model, observed) in kept.items():
        ours = model.state_dict()
        for name, weight in seen.seen[step].items():
            assert torch.equal(ours[name], weight), (step, name)
        assert observed == [{"count": step}]
    assert not torch.equal(*(next(iter(kept[step][0].state_dict().values())) for step in (3, 5))) or "lora" in changes


def test_keeping_snapshots_changes_nothing(tmp_path):
    plain = trained(model_of("ise"), tmp_path / "plain", max_steps=7)
    with_them = trained(model_of("ise"), tmp_path / "kept", max_steps=7, snapshots=(3, 5))
    same_bits(plain.model, with_them.model)


def test_a_snapshot_beyond_the_end_is_refused(tmp_path):
    with pytest.raises(BulwarkError, match="names step 9, but the training has only 4 steps"):
        trained(model_of("ise"), tmp_path, epochs=1.0, max_steps=None, snapshots=(9,))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"snapshots": (5, 3)}, "rising"),
        ({"snapshots": (0,)}, "from 1"),
        ({"snapshots": (3, 3)}, "rising"),
        ({"snapshots": (9,)}, "max_steps is 4"),
        ({"snapshots": (3,), "optimizer": "schedulefree_adamw", "schedule": "constant"}, "keeps no snapshots"),
    ],
)
def test_steps_that_cannot_be_kept(changes, told):
    with pytest.raises(ValueError, match=told):
        settings(**changes)
