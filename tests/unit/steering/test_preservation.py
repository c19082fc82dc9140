"""Intervention delta preservation: what of ΔW is left when it is protected (two ranks: test_delta_ranks.py)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import delta_samples as samples
import pytest
import torch
from delta_samples import BOUNDARY, energy_inside, trained
from pydantic import ValidationError
from stopped_samples import Interrupted
from training_samples import PAD, examples

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.preservation.preservation import Preservation
from bulwark.steering.preservation.settings import PreservationSettings, check_training
from bulwark.training import shards
from bulwark.training.batches import StepBatches
from bulwark.training.objectives import next_token_loss

PUBLISHED = {
    "project": "gradient", "basis": "qr_slice_as_published", "delta": "rounded_weights_as_published", "moments": "keep",
}  # fmt: skip
WAYS = {
    "update": {},
    "gradient": PUBLISHED,
    "both": {"project": "both", "scope": "all_linear", "strength": 0.5, "moments": "reset"},
    "flat": {"shape": "flat", "remove": "eroding", "project": "both"},
    "flat_gradient": {"shape": "flat", "remove": "eroding", "project": "gradient", "moments": "keep"},
}
WEIGHT = "model.layers.1.mlp.down_proj.weight"


def weights(folder, way: str | dict | None = None, **changes) -> dict:
    chosen = WAYS[way] if isinstance(way, str) else way
    result, objective = trained(folder, preservation=chosen, **changes)
    return result.model.state_dict() | {"objective": objective}


def at_boundary(folder, **changes) -> dict:
    """The weights at the boundary: those of a training that ends there, at a constant learning rate."""
    preservation = {"boundary": BOUNDARY, "strength": 1e-9, "moments": "keep"}
    return weights(folder, preservation, max_steps=BOUNDARY + 1, schedule="constant", **changes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_update_cannot_move_weights_along_the_directions(stage, tmp_path):
    found = weights(tmp_path, "update", zero_stage=stage, weight_decay=0.1)
    objective = found["objective"]
    shares = [share for _, share, _ in objective.report()["steering"]["retained_and_drift"]]
    assert len(shares) == 1 + 7 - BOUNDARY
    assert shares == pytest.approx([1.0] * len(shares), abs=1e-5)
    for guard, anchor in zip(objective.guards, objective._anchor, strict=True):
        weight = found[guard.name]
        coordinates = weight.T @ guard.basis if guard.side == "output" else weight @ guard.basis
        torch.testing.assert_close(coordinates, anchor, atol=1e-6, rtol=0)


def test_projecting_gradients_lets_adamw_out_of_the_subspace(tmp_path):
    """With moments kept and weight decay, part of the update lies in the subspace that was removed."""
    objective = weights(tmp_path, "gradient", weight_decay=0.1)["objective"]
    measured = objective.report()["steering"]["retained_and_drift"]
    assert measured[0] == [BOUNDARY, 1.0, 0.0]
    assert abs(measured[-1][1] - 1) > 1e-3
    assert measured[-1][2] > 1e-2


@pytest.mark.parametrize(("precision", "stage"), [("float32", 0), ("float32", 3), ("bfloat16", 1), ("bfloat16", 2)])
def test_the_projected_gradient_has_nothing_in_the_subspace(precision, stage, tmp_path, monkeypatch):
    inside = []

    def looking(self, engine, step, total):
        edit(self, engine, step, total)
        if self.crossed:
            for guard in self.guards:
                gradient = shards.local_gradient(engine, guard.parameter)
                inside.append(float(guard.along(gradient).norm() / gradient.values.norm()))

    edit = Preservation.after_backward
    monkeypatch.setattr(Preservation, "after_backward", looking)
    weights(tmp_path, WAYS["gradient"] | {"scope": "all_linear"}, precision=precision, zero_stage=stage)
    assert len(inside) == 7 * 3 * (7 - BOUNDARY)
    assert max(inside) < 1e-5


@pytest.mark.parametrize("project", ["gradient", "update"])
def test_a_flat_projection_touches_only_what_erodes(project, tmp_path, monkeypatch):
    """A step that does not work against ΔW stays as it is, bit for bit."""
    steps = []

    def surplus(self, movement, delta):
        found = real(self, movement, delta)
        steps.append((float((movement * delta).sum()), float(found[0].abs().sum()), float(movement.abs().sum())))
        return found

    real = Preservation._surplus
    monkeypatch.setattr(Preservation, "_surplus", surplus)
    chosen = {"shape": "flat", "remove": "eroding", "project": project, "moments": "keep"}
    weights(tmp_path, chosen, learning_rate=0.05, max_steps=14, eps=1e-8)
    against, along = [step for step in steps if step[0] < 0], [step for step in steps if step[0] >= 0]
    assert against
    assert along
    assert all(removed == size for _, removed, size in against)
    assert all(removed == 0 for _, removed, _ in along)


def test_of_a_gradient_what_descent_would_undo_is_removed(tmp_path, monkeypatch):
    """A step goes against the gradient: along a direction in which the gradient has ΔW's sign it undoes ΔW."""
    seen = []

    def looking(self, engine, step, total):
        def coordinates():
            return [guard.along(shards.local_gradient(engine, guard.parameter)).clone() for guard in self.guards]

        before = coordinates() if self.crossed else []
        edit(self, engine, step, total)
        for guard, was, now in zip(self.guards, before, coordinates() if before else [], strict=False):
            undone = (was * guard.delta).sum(dim=0) > 0
            seen.extend(undone.tolist())
            assert float(now[:, undone].abs().sum()) <= 1e-5 * float(was.abs().sum())
            torch.testing.assert_close(now[:, ~undone], was[:, ~undone], atol=1e-6, rtol=1e-4)

    edit = Preservation.after_backward
    monkeypatch.setattr(Preservation, "after_backward", looking)
    chosen = {"shape": "flat", "remove": "eroding", "project": "gradient", "moments": "keep"}
    weights(tmp_path, chosen, learning_rate=0.05, max_steps=14, eps=1e-8)
    assert {True, False} == set(seen)


def test_what_moves_back_along_the_delta_is_no_longer_retained():
    objective = Preservation.__new__(Preservation)
    delta, anchor = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    objective._engine_device, objective._anchor = torch.device("cpu"), [anchor]
    objective.guards = [SimpleNamespace(delta=delta)]
    objective._coordinates = lambda _: [anchor - 0.25 * delta]
    assert objective._moved(None).tolist() == [0.75, 0.25]


def test_without_anything_removed_it_is_steering_and_then_plain_training(tmp_path):
    kept = weights(tmp_path / "kept", {"project": "gradient", "strength": 1e-30, "moments": "keep"})
    free = weights(tmp_path / "free", {"strength": 1e-30, "moments": "keep"})
    for name in kept.keys() - {"objective"}:
        torch.testing.assert_close(free[name], kept[name], atol=1e-7, rtol=0)
    plain = trained(tmp_path / "plain", plain=True)[0].model.state_dict()
    assert not torch.allclose(plain[WEIGHT], kept[WEIGHT], atol=1e-4)


def test_only_the_first_phase_is_steered(tmp_path):
    """K steps, not K + 1: the loss of step K is without steering, so it does not depend on alpha's sign."""
    losses = {
        alpha: trained(tmp_path / f"{alpha}", intervention={"alpha": alpha}, learning_rate=1e-6)[0].report.loss
        for alpha in (0.5, -0.5)
    }
    differ = [abs(one - other) > 1e-4 for (_, one), (_, other) in zip(losses[0.5], losses[-0.5], strict=True)]
    assert differ == [True] * BOUNDARY + [False] * (7 - BOUNDARY)


def test_the_first_phase_is_steered_where_and_as_strongly_as_the_settings_say(tmp_path):
    given = {"site": "o_proj", "adaptive": True}
    result, _ = trained(tmp_path, intervention=given, max_steps=BOUNDARY + 1)
    model, total = samples.model_of(), 0.0
    steering = Intervention(model, {2: samples.vector()}, **given)
    batches = StepBatches(examples(samples.EXAMPLES), batch_size=4, micro_batch_size=2, pad_id=PAD)
    with torch.no_grad():
        for batch in batches.of_step(0):
            with steering.on(token_mask(batch, "response"), 0.5):
                total += float(next_token_loss(model, batch))
    assert result.report.loss[0][1] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("way", "stage", "at"),
    [
        ("update", 0, BOUNDARY - 1),
        ("update", 0, BOUNDARY),
        ("update", 0, BOUNDARY + 1),
        ("gradient", 2, BOUNDARY + 1),
        ("both", 3, BOUNDARY),
        ("flat", 0, BOUNDARY + 1),
        ("flat_gradient", 1, BOUNDARY + 2),
    ],
)
def test_resumed_around_the_boundary_it_ends_the_same(way, stage, at, tmp_path):
    whole = weights(tmp_path / "whole", way, zero_stage=stage, save_every=1)
    with pytest.raises(Interrupted):
        weights(tmp_path / "parts", way, zero_stage=stage, interrupt=at, save_every=1)
    parts = weights(tmp_path / "parts", way, zero_stage=stage, save_every=1)
    one, other = whole.pop("objective"), parts.pop("objective")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert one.report() == other.report()
    rows = [json.loads(line) for line in (tmp_path / "parts" / "preservation.jsonl").read_text().splitlines()]
    assert len(rows) == len(one.guards)


def test_stages_agree(tmp_path):
    one = weights(tmp_path / "0", "both", zero_stage=0)
    for stage in (1, 3):
        other = weights(tmp_path / f"{stage}", "both", zero_stage=stage)
        for name in one.keys() - {"objective"}:
            torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=0)


def test_moments_leave_the_subspace_at_the_boundary(tmp_path, monkeypatch):
    found = {}

    def crossing(self, engine, snapshots):
        cross(self, engine, snapshots)
        for guard in self.guards:
            moment = shards.local_moment(engine, guard.parameter, "exp_avg").values.view(guard.parameter.shape)
            found[self.settings.moments] = (float(moment.norm()), energy_inside(moment, guard.basis))

    cross = Preservation.cross
    monkeypatch.setattr(Preservation, "cross", crossing)
    for moments in ("keep", "project", "reset"):
        weights(tmp_path / moments, {"moments": moments})
    assert found["keep"][1] > 0.01
    assert found["project"][0] > 0
    assert found["project"][1] < 1e-10
    assert found["reset"][0] == 0


def test_deltas_from_rounded_weights_miss_small_displacements(tmp_path):
    """In bfloat16 a small displacement is mostly rounded away; the masters have it."""
    norms = {}
    for delta in ("masters", "rounded_weights_as_published"):
        chosen = {"delta": delta, "allow_partial": True, "moments": "keep"}
        objective = weights(tmp_path / delta, chosen, precision="bfloat16", learning_rate=1e-5)["objective"]
        norms[delta] = objective.report()["steering"]["delta_norm"]
    assert norms["masters"] > 0
    assert abs(norms["rounded_weights_as_published"] / norms["masters"] - 1) > 0.05


def test_what_is_told(tmp_path):
    result, objective = trained(tmp_path, preservation={"project": "both", "layers": (2,)})
    told = objective.report()["steering"]
    assert (told["boundary"], told["protected"], told["skipped"]) == (BOUNDARY, 2, [])
    assert 0 < told["captured_energy"]["least"] <= told["captured_energy"]["mean"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "preservation.jsonl").read_text().splitlines()]
    assert [row["weight"].split(".")[2] for row in rows] == ["1", "1"]
    assert told["delta_norm"] == pytest.approx(sum(row["delta_norm"] ** 2 for row in rows) ** 0.5)
    assert result.report.steps == 7


def test_metrics_are_those_since_the_last_reading(tmp_path):
    objective = Preservation.__new__(Preservation)
    objective.crossed, objective._history, objective._sums = True, [(3, torch.tensor([1.0, 0.5]))], {}
    objective._count(gradient_removed=torch.tensor(1.0), gradient=torch.tensor(4.0))
    objective._count(update_removed=torch.tensor(4.0), eroding=torch.tensor(0.5), updates=torch.ones(()))
    assert objective.metrics() == {
        "preservation/retained": 1.0,
        "preservation/drift": 0.5,
        "preservation/gradient_share_removed": 0.25,
        "preservation/update_removed": 2.0,
        "preservation/eroding_directions": 0.5,
    }
    assert objective.metrics() == {"preservation/retained": 1.0, "preservation/drift": 0.5}


def test_weights_that_have_not_moved(tmp_path):
    for partial in (False, True):
        with pytest.raises(BulwarkError, match="6 of 6 matrices have not moved after 3 steps"):
            weights(tmp_path / f"{partial}", {"min_delta_norm": 1e9, "allow_partial": partial})


def test_weights_that_have_not_moved_may_be_left_out(tmp_path):
    """Between the shortest and the longest ΔW some are skipped, and told."""
    norms = sorted(row["delta_norm"] for row in weights(tmp_path / "all", {})["objective"]._rows)
    chosen = {"min_delta_norm": norms[2], "allow_partial": True}
    told = weights(tmp_path / "some", chosen)["objective"].report()["steering"]
    assert (told["protected"], len(told["skipped"])) == (3, 3)


def test_a_boundary_behind_the_end(tmp_path):
    with pytest.raises(ConfigurationError, match="after 7 steps nothing is left of the training, which has 7"):
        weights(tmp_path, {"boundary": 7})


@pytest.mark.parametrize(("boundary", "steps"), [(5, 5), (0.5, 4), (0.01, 1)])
def test_a_boundary_in_steps_or_as_a_fraction(boundary, steps):
    assert PreservationSettings(boundary=boundary).steps(8) == steps


@pytest.mark.parametrize(
    "wrong", [{"boundary": 0}, {"boundary": 1.0}, {"boundary": 1, "layers": (2, 2)}, {"boundary": 1, "layers": ()}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        PreservationSettings(**wrong)


@pytest.mark.parametrize(
    ("changes", "moments", "message"),
    [
        ({"lora": {"rank": 2}}, "keep", "leave out training.lora"),
        ({"optimizer": "schedulefree_adamw", "schedule": "constant"}, "keep", "use adamw or sgd"),
        ({"optimizer": "sgd"}, "project", "preservation.moments: keep"),
        ({"keep_best": True}, "keep", "another phase begins"),
        ({"max_steps": 3}, "keep", "nothing is left of the training's 3 steps"),
    ],
)
def test_trainings_without_such_a_displacement(changes, moments, message):
    with pytest.raises(ValueError, match=message):
        check_training(samples.settings(**changes), PreservationSettings(boundary=3), moments)


def test_sgd_keeps_to_its_projected_gradient(tmp_path):
    """With SGD the step is the gradient, so projecting either retains all of ΔW."""
    chosen = {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    for project in ("gradient", "update"):
        objective = weights(tmp_path / project, {"project": project, "moments": "keep"}, **chosen)["objective"]
        assert objective.report()["steering"]["retained_and_drift"][-1][1] == pytest.approx(1.0, abs=1e-4)
