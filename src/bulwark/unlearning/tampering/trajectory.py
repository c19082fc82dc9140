"""Going away from the weights and coming back: a simulated attack on what lies on each rank.

The master weights of every ZeRO stage are flat pieces (`training.shards`). An optimizer of torch works on the pieces as
it would on whole weights, because its updates are elementwise; so an attack needs no second engine, and costs one copy
of the pieces (to come back) and the attacker's own state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training.shards import Shard, local_gradient, local_master
from bulwark.unlearning.tampering.settings import InnerSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Attack:
    """A fine-tuning of the engine's weights in place, by an optimizer of its own.

    It holds views of the masters; `step` takes the gradients that the last backward pass left, and clears them.
    """

    def __init__(self, engine: DeepSpeedEngine, settings: InnerSettings, learning_rate: float) -> None:
        self.engine = engine
        self.parameters = trained_parameters(engine)
        self.masters = [local_master(engine, parameter) for parameter in self.parameters]
        self._pieces = [nn.Parameter(master.values) for master in self.masters]
        held = [piece for piece in self._pieces if piece.numel()]  # a rank may hold nothing of a weight
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.SGD
        self._optimizer = kind(held, lr=learning_rate, weight_decay=settings.weight_decay, fused=True)

    def step(self) -> None:
        """One step of the attacker's optimizer; all ranks must call it."""
        for parameter, master, piece in zip(self.parameters, self.masters, self._pieces, strict=True):
            gradient = local_gradient(self.engine, parameter)
            piece.grad = None if gradient is None else _beside(gradient, master).to(piece)
        self._optimizer.step()
        for piece in self._pieces:
            piece.grad = None
        engines.publish(self.engine)
        engines.clear_gradients(self.engine)


@contextlib.contextmanager
def away(engine: DeepSpeedEngine, park_optimizer: bool = False) -> Iterator[None]:
    """Within it the weights may be changed; afterwards they are what they were, to the bit, and gradients are cleared.

    park_optimizer: the engine's optimizer state waits in the host's memory meanwhile. All ranks must enter and leave.
    """
    masters = [local_master(engine, parameter).values for parameter in trained_parameters(engine)]
    home = [values.to("cpu", copy=True) for values in masters]
    try:
        with _parked(engine) if park_optimizer else contextlib.nullcontext():
            yield
    finally:
        for values, kept in zip(masters, home, strict=True):
            values.copy_(kept)
        engines.publish(engine)
        engines.clear_gradients(engine)


class Gathered:
    """A weighted sum of gradients taken at several weights, each rank's pieces of it (one copy of the gradients)."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine, self.parameters = engine, trained_parameters(engine)
        self._sums: list[Tensor | None] = [None] * len(self.parameters)

    def take(self, weight: float) -> None:
        """Add weight · (the gradients of the last backward pass), and clear those."""
        for number, parameter in enumerate(self.parameters):
            gradient = local_gradient(self.engine, parameter)
            if gradient is None:
                continue
            known = self._sums[number]
            if known is None:
                self._sums[number] = gradient.values.float() * weight
            else:
                known.add_(gradient.values, alpha=weight)
        engines.clear_gradients(self.engine)

    def add_to_gradients(self) -> None:
        """Add the sums to the gradients that the engine holds now, before they are clipped."""
        from bulwark.training.shards import add_to_gradient, gradients_edited

        for parameter, known in zip(self.parameters, self._sums, strict=True):
            if known is not None:
                add_to_gradient(self.engine, parameter, known)
        gradients_edited(self.engine, self.parameters)


def trained_parameters(engine: DeepSpeedEngine) -> list[nn.Parameter]:
    """The parameters that the engine trains, tied ones once, in the model's order."""
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _beside(gradient: Shard, master: Shard) -> Tensor:
    """The part of a gradient that belongs to the piece of the master: they differ where only the master is sharded."""
    start = master.start - gradient.start
    return gradient.values.narrow(0, start, master.values.numel()) if master.values.numel() else gradient.values[:0]


@contextlib.contextmanager
def _parked(engine: DeepSpeedEngine) -> Iterator[None]:
    """Within it the state of the engine's optimizer lies in the host's memory."""
    states = [
        (state, name, value.device)
        for state in engine.basic_optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and value.dim() and value.device.type != "cpu"
    ]
    for state, name, _ in states:
        state[name] = state[name].to("cpu")
    try:
        yield
    finally:
        for state, name, device in states:
            state[name] = state[name].to(device)
