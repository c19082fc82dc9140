"""What all trained weights and gradients are to an immunising step: the pieces that this rank holds (training.shards).

Nothing here communicates but `length`, and what is put back is bit for bit what was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training import shards
from bulwark.training.shards import Shard

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def trained(engine: DeepSpeedEngine) -> list[nn.Parameter]:
    """The parameters that are trained, in the model's order."""
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def masters(engine: DeepSpeedEngine) -> list[Shard]:
    """This rank's piece of every trained parameter's master weight, as views."""
    return [shards.local_master(engine, parameter) for parameter in trained(engine)]


def copied(pieces: list[Shard]) -> list[Tensor]:
    return [piece.values.clone() for piece in pieces]


def put_back(engine: DeepSpeedEngine, values: list[Tensor]) -> None:
    """Let the weights be those that `copied(masters(engine))` returned."""
    for piece, value in zip(masters(engine), values, strict=True):
        piece.values.copy_(value)
    engines.publish(engine)


def gradients(engine: DeepSpeedEngine) -> list[Tensor | None]:
    """Copies of this rank's pieces of the gradients, as they lie there; None where there is none."""
    found = [shards.local_gradient(engine, parameter) for parameter in trained(engine)]
    return [None if piece is None else piece.values.clone() for piece in found]


def add_to_gradients(engine: DeepSpeedEngine, values: list[Tensor | None]) -> None:
    """Add pieces, laid out as `gradients` gives them, to the step's gradients, between backward pass and step.

    A parameter that took no part in the loss gets nothing: it has no gradient to add to.
    """
    parameters = trained(engine)
    for parameter, value in zip(parameters, values, strict=True):
        piece = shards.local_gradient(engine, parameter)
        if piece is not None and value is not None:
            piece.values.add_(value)
    shards.gradients_edited(engine, parameters)


def at_masters(engine: DeepSpeedEngine, values: list[Tensor | None]) -> list[Tensor | None]:
    """The parts of `gradients(engine)` that belong to this rank's master weights, as views.

    In bfloat16 at stage 1 gradients are whole on every rank, and master weights are not.
    """
    parts: list[Tensor | None] = []
    for piece, value in zip(masters(engine), values, strict=True):
        whole = value is not None and len(value) != len(piece.values)
        parts.append(value[piece.start : piece.end] if whole else value)
    return parts


def length(engine: DeepSpeedEngine, values: list[Tensor | None]) -> Tensor:
    """The norm over all ranks of pieces laid out as master weights, a scalar in float64. All ranks must call it."""
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)  # whole on every rank, and in pieces
    for piece, value in zip(masters(engine), values, strict=True):
        if value is not None:
            total[0 if piece.replicated else 1] += value.double().square().sum().to(total.device)
    total[1:] = engines.over_ranks(total[1:].clone())
    return total.sum().sqrt()
