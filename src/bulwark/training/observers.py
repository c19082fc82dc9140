"""What watches a training: the hooks that the loop calls around every optimizer step, beside the loss.

In every optimizer step the loop calls

    before_step → for each micro-batch: `during(batch)` around its forward and backward pass → after_step

first of the objective (an observer that also decides what is optimised), then of each observer in the given order.

A hook that is part of the model and acts on some tokens only asks `batch_in_pass` which batch is going through it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bulwark.training.batches import Batch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_BATCH: ContextVar[Batch | None] = ContextVar("batch", default=None)


class Observer:
    """Does nothing. All ranks call every method, unless it says otherwise."""

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        """Before the first of `total` steps and before any state is loaded: the weights are those it starts from."""

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """Before optimizer step `step`, which counts from 0."""

    def during(self, batch: Batch) -> AbstractContextManager[Any]:
        """What surrounds forward and backward pass of one micro-batch, on the device it is trained on."""
        return contextlib.nullcontext()

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """After optimizer step `step`, before the model is evaluated or saved."""

    def finish(self, model: nn.Module, step: int, total: int) -> None:
        """On the main process, with the finished model, which is whole and has the weights after `step` steps."""

    def write(self, folder: Path) -> None:
        """On the main process, when the weights lie in the checkpoint's folder: write what belongs beside them."""

    def snapshot(self) -> dict[str, Any]:
        """On the main process, after a step whose weights are kept: what `write_snapshot` needs of this moment."""
        return {}

    def write_snapshot(self, folder: Path, observed: dict[str, Any]) -> None:
        """On the main process, when a snapshot's weights lie in its folder: write what belongs beside them."""

    def report(self) -> dict[str, Any]:
        """What the manifest records of it, as plain data."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Whatever a resumed run needs to go on as if nothing had happened; each rank keeps its own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


@contextlib.contextmanager
def passing(batch: Batch) -> Iterator[None]:
    """Within it, passes through the model are about `batch`."""
    token = _BATCH.set(batch)
    try:
        yield
    finally:
        _BATCH.reset(token)


def batch_in_pass() -> Batch | None:
    """The batch that is going through the model; None outside `passing`."""
    return _BATCH.get()
