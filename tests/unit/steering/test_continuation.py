"""Intervention delta continuation: the vectors that take over at the boundary (two ranks: test_delta_ranks.py)."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from delta_samples import BOUNDARY, HIDDEN, model_of, trained, vector
from pydantic import ValidationError
from stopped_samples import Interrupted
from training_samples import PAD, examples, settings

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.settings import validated
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.preservation.continuation import Continuation, continued
from bulwark.steering.preservation.settings import ContinuationSettings
from bulwark.steps import idp_continuation
from bulwark.training.batches import training_batches
from bulwark.training.objectives import next_token_loss

WAYS = {
    "functional_mean": {},
    "svd_u": {"source": "svd_u", "rank": 2, "scale": "equal_share", "sign": "opposite"},
    "raw": {"scale": "raw", "modules": ("down_proj",), "calibration_steps": 2},
}


def run(folder, way: str | dict = "functional_mean", **changes):
    chosen = WAYS[way] if isinstance(way, str) else way
    result, objective = trained(folder, continuation=chosen, **changes)
    return result.model.state_dict(), objective


def test_scales_and_signs():
    """The norms add up to ‖v‖."""
    v = vector()
    raw = {"o_proj": -3 * v + torch.ones(HIDDEN), "down_proj": torch.randn(HIDDEN)}
    ratio = continued(raw, v)
    assert float(sum(u.norm() for u in ratio.values())) == pytest.approx(float(v.norm()), rel=1e-6)
    norms = {name: float(u.norm()) for name, u in raw.items()}
    for name, u in ratio.items():
        assert float(u.norm() / v.norm()) == pytest.approx(norms[name] / sum(norms.values()), rel=1e-5)
        assert float(u @ v) >= 0
        torch.testing.assert_close(torch.cosine_similarity(u, raw[name], dim=0).abs(), torch.tensor(1.0))
    equal = continued(raw, v, scale="equal_share")
    assert [float(u.norm() / v.norm()) for u in equal.values()] == pytest.approx([0.5, 0.5])
    opposite = continued(raw, v, sign="opposite", scale="raw")
    assert all(float(u @ v) <= 0 for u in opposite.values())
    torch.testing.assert_close(opposite["o_proj"], raw["o_proj"])


@pytest.mark.parametrize("stage", [0, 3])
def test_u_is_what_the_displacement_adds_for_the_mean_input(stage, tmp_path, monkeypatch):
    """Against a computation with whole matrices on a model with the weights of the boundary."""
    found = {}

    def crossing(self, engine, snapshots):
        cross(self, engine, snapshots)
        from bulwark.training import engine as engines

        found["at"] = {name: u.clone() for (_, name), u in self.at.items()}
        found["weights"] = {name: engines.master_of(parameter) for name, parameter in engine.module.named_parameters()}

    cross = Continuation.cross
    monkeypatch.setattr(Continuation, "cross", crossing)
    _, objective = run(tmp_path, {"scale": "raw", "calibration_steps": 2}, zero_stage=stage)

    before, model = model_of(), model_of()
    model.load_state_dict(found["weights"])
    inputs: dict[str, list] = {"self_attn.o_proj": [], "mlp.down_proj": []}
    for name, seen in inputs.items():
        part = model.model.layers[1].get_submodule(name)
        part.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
    batches = training_batches(examples(24), settings(max_steps=7), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False)
    masks = []
    with torch.no_grad():
        for step in (BOUNDARY, BOUNDARY + 1):
            for batch in batches.of_step(step):
                model(**batch.inputs())
                masks.append(token_mask(batch, "response"))
    tokens = sum(int(mask.sum()) for mask in masks)
    assert objective.report()["steering"]["calibration"] == {"steps": 2, "tokens": tokens}
    for name, seen in inputs.items():
        mean = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]).mean(dim=0)
        whole = f"model.layers.1.{name}.weight"
        u = (found["weights"][whole] - before.state_dict()[whole]) @ mean
        u = u * torch.sign(u @ vector())
        torch.testing.assert_close(found["at"][name.split(".")[1]], u, atol=1e-5, rtol=1e-4)


def test_svd_u_is_that_of_a_whole_decomposition(tmp_path, monkeypatch):
    found = {}

    def crossing(self, engine, snapshots):
        before = {moved.name: moved.values.clone() for moved in snapshots}
        cross(self, engine, snapshots)
        weights = dict(engine.module.named_parameters())
        found.update(
            {name: (weights[name].detach() - start.view(weights[name].shape)) for name, start in before.items()}
        )

    cross = Continuation.cross
    monkeypatch.setattr(Continuation, "cross", crossing)
    _, objective = run(tmp_path, {"source": "svd_u", "rank": 2, "scale": "raw"})
    told = objective.report()["steering"]
    for name, delta in found.items():
        module = name.split(".")[-2]
        left, values, _ = torch.linalg.svd(delta)
        signs = torch.sign(left[:, :2].T @ vector())
        torch.testing.assert_close(objective.at[2, module], left[:, :2] @ (values[:2] * signs), atol=1e-4, rtol=1e-3)
        captured = float(values[:2].square().sum() / values.square().sum())
        assert told["captured_energy"][f"layer2.{module}"] == pytest.approx(captured, rel=1e-3)


def test_u_acts_in_the_second_phase_only_and_there_at_its_modules(tmp_path):
    """A changed scale of u changes the losses from the boundary on, and none before."""
    losses = {
        scale: trained(tmp_path / scale, continuation={"scale": scale})[0].report.loss
        for scale in ("preserve_ratio", "equal_share")
    }
    pairs = zip(losses["preserve_ratio"], losses["equal_share"], strict=True)
    differ = [one != other for (_, one), (_, other) in pairs]
    assert differ == [False] * BOUNDARY + [True] * (7 - BOUNDARY)


def test_each_module_is_given_its_own_vector(tmp_path):
    """The loss of the first step behind the boundary, with next to no learning, so that the weights are the start's."""
    result, objective = trained(tmp_path, continuation={}, learning_rate=1e-7)
    [batch] = training_batches(
        examples(24), settings(micro_batch_size=4), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False
    ).of_step(BOUNDARY)
    mask, model = token_mask(batch, "response"), model_of()

    def loss(*names: str) -> float:
        with ExitStack() as stack, torch.no_grad():
            for name in names:
                steering = Intervention(model, {2: objective.at[2, name]}, site=name)
                stack.enter_context(steering.on(mask, 0.5))
            return float(next_token_loss(model, batch))

    assert result.report.loss[BOUNDARY][1] == pytest.approx(loss("o_proj", "down_proj"), abs=1e-4)
    assert abs(loss("o_proj") - loss("o_proj", "down_proj")) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_gradients_with_checkpointing_are_the_same(way, tmp_path):
    """Hooks on modules inside a block outlast the backward pass."""
    plain, _ = run(tmp_path / "plain", way, intervention={"adaptive": True})
    recomputed, _ = run(tmp_path / "checkpointing", way, intervention={"adaptive": True}, gradient_checkpointing=True)
    for name, weight in plain.items():
        torch.testing.assert_close(recomputed[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("way", "stage", "at"),
    [
        ("functional_mean", 0, BOUNDARY - 1),
        ("functional_mean", 0, BOUNDARY),
        ("functional_mean", 0, BOUNDARY + 1),
        ("svd_u", 3, BOUNDARY),
        ("raw", 2, BOUNDARY + 1),
    ],
)
def test_resumed_around_the_boundary_it_ends_the_same(way, stage, at, tmp_path):
    whole, one = run(tmp_path / "whole", way, zero_stage=stage, save_every=1)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", way, zero_stage=stage, interrupt=at, save_every=1)
    parts, other = run(tmp_path / "parts", way, zero_stage=stage, save_every=1)
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert one.report() == other.report()


def test_calibration_takes_nothing_from_the_training(tmp_path):
    """The number of steps and tokens is the same, and the model is in training mode again."""
    one, _ = trained(tmp_path / "one", continuation={})
    three, objective = trained(tmp_path / "three", continuation={"calibration_steps": 3})
    assert (one.report.steps, one.report.tokens) == (three.report.steps, three.report.tokens)
    assert objective.report()["steering"]["calibration"]["steps"] == 3


def test_too_little_to_calibrate_on(tmp_path):
    with pytest.raises(BulwarkError, match=r"An epoch has 6 steps with \d+ steered tokens, but .* 100000"):
        run(tmp_path, {"calibration_tokens": 100_000})


def test_weights_that_have_not_moved(tmp_path):
    with pytest.raises(BulwarkError, match=r"layers\.1\.self_attn\.o_proj.*not moved after 3 steps"):
        run(tmp_path, {"min_delta_norm": 1e9})


def test_a_boundary_behind_the_end(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing is left of the training"):
        run(tmp_path, {"boundary": 9})


def test_what_is_told(tmp_path):
    _, objective = run(tmp_path)
    rows = objective.report()["steering"]["modules"]
    assert list(rows) == ["layer2.o_proj", "layer2.down_proj"]
    for row in rows.values():
        assert row["cos_v"] == pytest.approx(abs(row["raw_cos_v"]), abs=1e-5)
    metrics = objective.metrics()
    assert metrics["continuation/layer2.o_proj/norm"] == rows["layer2.o_proj"]["norm"]


def test_settings_that_make_no_sense():
    with pytest.raises(ValidationError, match="names one of them twice"):
        ContinuationSettings(boundary=3, modules=("o_proj", "o_proj"))
    with pytest.raises(ValidationError):
        ContinuationSettings(boundary=3, modules=())
    data = {
        "data": "x",
        "training": {"epochs": 1.0, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3},
        "vectors": {"traits": ["evil"], "layers": [2]},
        "intervention": {"adaptive": True},
        "continuation": {"boundary": 3, "scale": "raw"},
    }
    with pytest.raises(ConfigurationError, match='"raw" would change nothing'):
        validated(idp_continuation.Settings, data, "config/steps/x.yaml")
