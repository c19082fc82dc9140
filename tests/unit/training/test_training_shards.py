"""What one process holds of weights, gradients and moments, at every ZeRO stage (two ranks: test_shard_ranks.py)."""

from __future__ import annotations

import pytest
import shard_samples
import torch
from tiny_causal_models import tiny_model
from training_samples import trained

from bulwark.errors import BulwarkError
from bulwark.models.embeddings import install
from bulwark.training import shards

# In bfloat16, stage 0 is stage 1.
STAGES = [{"zero_stage": stage, "precision": "float32"} for stage in (0, 1, 2, 3)]
STAGES += [{"zero_stage": stage, "precision": "bfloat16"} for stage in (1, 2, 3)]
STAGES += [
    {"zero_stage": 2, "precision": "float32", "offload": True},
    {"zero_stage": 3, "precision": "bfloat16", "offload": True},
]
NAMES = ["-".join(map(str, stage.values())) for stage in STAGES]


def model_of(precision: str = "float32"):
    model = tiny_model(dtype=getattr(torch, precision))
    install(model, {"method": "vanilla"})
    return model


def weights(folder, objective: str | None = None, model=None, **changes):
    model = model or model_of(changes.get("precision", "float32"))
    chosen = getattr(shard_samples, objective)() if objective else None
    return trained(model, folder, objective=chosen, **changes).model.state_dict()


def same(one, other):
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_the_pieces_are_those_of_the_whole(stage, tmp_path):
    weights(tmp_path, "Checked", max_steps=2, **stage)


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_gradients_are_scaled_exactly_and_before_clipping(stage, tmp_path):
    chosen = stage | {"max_grad_norm": 1e-3, "optimizer": "sgd", "learning_rate": 10.0, "max_steps": 2}
    plain = weights(tmp_path / "plain", **chosen)
    same(plain, weights(tmp_path / "one", "Unscaled", **chosen))
    # All gradients are clipped to the same norm, so their scale must not be seen.
    tolerance = 1e-5 if stage["precision"] == "float32" else 1e-2
    for objective in ("Scaled", "ScaledByTensor"):
        scaled = weights(tmp_path / objective, objective, **chosen)
        torch.testing.assert_close(scaled, plain, atol=tolerance, rtol=0)


def test_scaled_gradients_move_the_weights_that_much_more(tmp_path):
    chosen = {"optimizer": "sgd", "max_grad_norm": 0.0, "max_steps": 1, "schedule": "constant"}
    once = weights(tmp_path / "once", learning_rate=0.02, **chosen)
    same(once, weights(tmp_path / "twice", "Scaled", learning_rate=0.01, **chosen))


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_weights_and_gradients_can_be_edited_in_pieces(stage, tmp_path):
    before = model_of().state_dict()
    after = weights(tmp_path, "EditedInPieces", max_steps=2, max_grad_norm=0.0, learning_rate=1e-4, **stage)
    name = "model.layers.1.self_attn.{}_proj.weight"
    count = before[name.format("k")].numel()
    shift = 2 * 0.01 * torch.arange(count).view_as(before[name.format("k")])
    close = {"atol": 1e-3 if stage["precision"] == "float32" else 0.05, "rtol": 0}
    torch.testing.assert_close(after[name.format("q")].float(), before[name.format("q")], **close)
    torch.testing.assert_close(after[name.format("k")].float(), before[name.format("k")] + shift, **close)
    if stage["precision"] == "float32":
        assert torch.equal(after[name.format("q")], before[name.format("q")])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adamw_begins_anew(stage, tmp_path):
    """The first step of AdamW moves every weight by the learning rate; so does every step of one without memory."""
    name = "model.layers.0.mlp.down_proj.weight"
    chosen = {"max_steps": 2, "schedule": "constant", "learning_rate": 1e-3, "max_grad_norm": 0.0, "zero_stage": stage}
    sizes = {}
    for objective in ("Forgetful", None):
        moved = weights(tmp_path / str(objective), objective, **chosen)[name] - model_of().state_dict()[name]
        # Twice in the same direction, or there and back.
        sizes[objective] = torch.minimum((moved.abs() - 2e-3).abs(), moved.abs())
    assert sizes["Forgetful"].max() < 2e-5
    assert sizes[None].median() > 2e-5


def test_what_is_frozen_or_has_no_moments(tmp_path):
    class Asking(shard_samples.Objective):
        def after_step(self, engine, step, total):
            parameter = next(engine.module.parameters())
            with pytest.raises(BulwarkError, match="SGD keeps no moments"):
                shards.local_moment(engine, parameter, "exp_avg")
            parameter.requires_grad_(False)
            with pytest.raises(BulwarkError, match="frozen"):
                shards.local_master(engine, parameter)

    trained(model_of(), tmp_path, objective=Asking(), optimizer="sgd", max_steps=1)
