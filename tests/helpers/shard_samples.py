"""Objectives for the tests of what a rank holds: each compares the pieces with the whole tensors while it trains."""

from __future__ import annotations

import torch
from deepspeed.utils import safe_get_full_optimizer_state

from bulwark.training import engine as engines
from bulwark.training import shards
from bulwark.training.objectives import Objective


class Checked(Objective):
    """Compares every shard with the whole; all ranks together must hold each parameter once, or each of them whole."""

    def after_backward(self, engine, step, total):
        for parameter in engine.module.parameters():
            self.compare(shards.local_master(engine, parameter), engines.master_of(parameter))
            self.compare(shards.local_gradient(engine, parameter), engines.gradient_of(parameter))
            assert (shards.local_moment(engine, parameter, "exp_avg") is None) == (step == 0)

    def after_step(self, engine, step, total):
        for parameter in engine.module.parameters():
            for name in ("exp_avg", "exp_avg_sq"):
                moment = shards.local_moment(engine, parameter, name)
                if engine.zero_optimization():
                    self.compare(moment, safe_get_full_optimizer_state(parameter, name))
                else:
                    assert moment.values.data_ptr() == engine.optimizer.state[parameter][name].data_ptr()

    def compare(self, shard, whole):
        assert shard.values.dtype == torch.float32
        assert torch.equal(shard.values, whole.flatten()[shard.start : shard.end])
        covered = torch.tensor(shard.values.numel())
        torch.distributed.all_reduce(covered)
        assert covered == whole.numel() * (torch.distributed.get_world_size() if shard.replicated else 1)


class EditedInPieces(Objective):
    """Removes the gradients of the query projections and shifts the key projections' weights, piece by piece."""

    def after_backward(self, engine, step, total):
        for name, parameter in engine.module.named_parameters():
            if name.endswith("q_proj.weight"):
                shards.local_gradient(engine, parameter).values.zero_()
                shards.gradients_edited(engine, [parameter])
                assert not engines.gradient_of(parameter).any()

    def after_step(self, engine, step, total):
        for name, parameter in engine.module.named_parameters():
            if name.endswith("k_proj.weight"):
                shard = shards.local_master(engine, parameter)
                shard.values.add_(0.01 * torch.arange(shard.start, shard.end, device=shard.values.device))
        engines.publish(engine)


class Scaled(Objective):
    """Scales the gradients, and looks whether they are exactly that."""

    factor = 2.0

    def after_backward(self, engine, step, total):
        before = [engines.gradient_of(parameter).clone() for parameter in engine.module.parameters()]
        engines.scale_gradients(engine, self.factor)
        for parameter, gradient in zip(engine.module.parameters(), before, strict=True):
            assert torch.equal(engines.gradient_of(parameter), gradient * self.factor)


class ScaledByTensor(Scaled):
    factor = torch.tensor(0.3)


class Unscaled(Scaled):
    factor = 1.0


class Forgetful(Objective):
    """Lets AdamW begin anew after every step."""

    def after_step(self, engine, step, total):
        shards.reset_moments(engine)
