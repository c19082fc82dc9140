"""What one rank holds of a parameter: of its fp32 master, its gradient and its AdamW moments, at every ZeRO stage.

`engine.master_of` and `engine.gradient_of` put whole tensors together on every rank. The views here cost nothing and
communicate nothing: a method that edits weights or gradients works on what lies on its rank and adds up only what it
must over the ranks. Each shard is a contiguous piece of the flattened parameter (row by row).

| stage, precision   | master                   | gradient                 | moments                  |
|--------------------|--------------------------|--------------------------|--------------------------|
| 0, float32         | whole, on every rank     | whole, on every rank     | whole, on every rank     |
| 0 or 1, bfloat16   | a piece of the flat group| whole, on every rank     | a piece of the flat group|
| 1 and 2            | a piece of the flat group| the same piece           | the same piece           |
| 3                  | an equal share           | the same share           | the same share           |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Shard:
    """A piece of a flattened parameter.

    values: [n], a view that can be written to; n is 0 on a rank that holds nothing of it. start: where the piece
    begins in the flattened parameter. replicated: every rank holds the whole, so sums over ranks must not be taken.
    """

    values: Tensor
    start: int
    replicated: bool

    @property
    def end(self) -> int:
        return self.start + self.values.numel()


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, also where ZeRO-3 has sharded it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def local_master(engine: DeepSpeedEngine, parameter: nn.Parameter) -> Shard:
    """This rank's piece of the fp32 master weight. After writing to it call `engine.publish` once.

    Raises BulwarkError for a frozen parameter, which has no master.
    """
    _trainable(parameter)
    if not engine.zero_optimization():
        return Shard(parameter.detach().view(-1), 0, replicated=True)
    flat, offset, length, start = _place(engine, parameter)
    return Shard(flat.detach().narrow(0, offset, length), start, replicated=False)


def local_gradient(engine: DeepSpeedEngine, parameter: nn.Parameter) -> Shard | None:
    """This rank's piece of the gradient, between the last backward pass and the step, averaged over ranks.

    None where the parameter took no part in the loss. After writing to some, call `gradients_edited`.
    Raises BulwarkError for a frozen parameter.
    """
    _trainable(parameter)
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        gradient = parameter.grad
        return None if gradient is None else Shard(gradient.detach().view(-1), 0, replicated=True)
    if hasattr(optimizer, "fp32_groups_gradients_flat"):  # bfloat16 at stage 1: reduced, but kept whole
        gradient = getattr(parameter, "_hp_grad", None)
        return None if gradient is None else Shard(gradient.detach().view(-1), 0, replicated=True)
    flat, _, length, start = _place(engine, parameter)
    if engine.zero_optimization_partition_weights():
        gradient, _ = optimizer._get_fp32_grad_state_partition(parameter, release_swap_buffers=True)
        return Shard(gradient.detach().view(-1).narrow(0, 0, length), start, replicated=False)
    mapping = parameter._hp_mapping
    if mapping is None:
        return Shard(flat.detach().narrow(0, 0, 0), 0, replicated=False)
    gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group)
    return Shard(gradient.detach().view(-1), start, replicated=False)


def add_to_gradient(engine: DeepSpeedEngine, parameter: nn.Parameter, values: Tensor) -> None:
    """Add `values`, a piece like that of `local_gradient`, to this rank's gradient; then call `gradients_edited`.

    Raises BulwarkError where the parameter has no gradient, because it took no part in the step's own loss.
    """
    gradient = local_gradient(engine, parameter)
    if gradient is None:
        raise BulwarkError(
            "A trained parameter took no part in the loss of this optimizer step, so there is no gradient to add to."
        )
    gradient.values.add_(values.to(gradient.values.device))


def gradients_edited(engine: DeepSpeedEngine, parameters: list[nn.Parameter]) -> None:
    """Say that the gradients of `parameters` have been written to: with offloading their norms are taken anew."""
    norms = getattr(engine.optimizer, "norm_for_param_grads", {})
    for parameter in parameters:
        identity = engine.optimizer.get_param_id(parameter) if norms else None
        if identity in norms:
            norms[identity] = local_gradient(engine, parameter).values.to(norms[identity]).norm()  # as DeepSpeed does


def local_moment(engine: DeepSpeedEngine, parameter: nn.Parameter, name: str) -> Shard | None:
    """This rank's piece of an AdamW moment, "exp_avg" or "exp_avg_sq"; None before the first step.

    Raises BulwarkError for a frozen parameter and for an optimizer without such moments.
    """
    _trainable(parameter)
    optimizer = _adamw(engine)
    if not engine.zero_optimization():
        state = optimizer.state.get(parameter)
        return None if not state else Shard(state[name].view(-1), 0, replicated=True)
    flat, offset, length, start = _place(engine, parameter)
    state = optimizer.state.get(flat)
    return None if not state else Shard(state[name].view(-1).narrow(0, offset, length), start, replicated=False)


def reset_moments(engine: DeepSpeedEngine) -> None:
    """Let AdamW begin anew for all parameters: both moments and its count of steps, by which it corrects their bias.

    For all, because at ZeRO 1 to 3 many parameters share one count. Raises BulwarkError for another optimizer.
    """
    for state in _adamw(engine).state.values():
        for value in state.values():
            value.zero_()


def _adamw(engine: DeepSpeedEngine) -> torch.optim.AdamW:
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, torch.optim.AdamW):
        raise BulwarkError(
            f"{type(optimizer).__name__} keeps no moments as AdamW does; train with optimizer: adamw, or leave them."
        )
    return optimizer


def _trainable(parameter: nn.Parameter) -> None:
    if not parameter.requires_grad:
        raise BulwarkError("A frozen parameter has no master weight, gradient or moments.")


def _place(engine: DeepSpeedEngine, parameter: nn.Parameter) -> tuple[Tensor, int, int, int]:
    """The rank's flat fp32 tensor that `parameter` lies in, offset and length there, and the start in the parameter."""
    optimizer = engine.optimizer
    if engine.zero_optimization_partition_weights():
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        share = parameter.partition_numel()
        start = min(parameter.ds_numel, share * optimizer._get_param_partition_rank(parameter))
        # The last share is padded.
        return optimizer.fp32_partitioned_groups_flat[group], offset, min(share, parameter.ds_numel - start), start
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    mapping = parameter._hp_mapping
    if mapping is None:
        return flats[0], 0, 0, 0
    inside, own = mapping.hp_fragment_address, mapping.lp_fragment_address
    return flats[mapping.param_group_index], inside.start, inside.numel, own.start
