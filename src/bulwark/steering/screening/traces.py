"""ZeRO-3's prefetch where a micro-batch goes through parts of the model several times.

DeepSpeed remembers in which order the modules of a pass were called, and fetches the parameters of those that come next
ahead of time. It takes every call of the model for the same pass: where the next one skips blocks, the order is found
to be wrong, is forgotten, and nothing is fetched ahead until a pass has been recorded again. Here every kind of pass
has an order of its own, so that each is recorded once and holds from then on.

A kind is known by its place: the first pass through the trunk, the first pass through the upper part after it, … A
backward pass belongs to the call that came before it. Places are the same on all ranks, because all go through the
model equally often.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_PRIVATE = "_PartitionedParameterCoordinator__"
_STATE = ("trace_mode", "submodule_order", "param_order")


class Traces:
    """The orders of one model. Does nothing but under ZeRO-3.

    model: the engine around a model, or a model without one.
    """

    def __init__(self, model: nn.Module) -> None:
        offload = getattr(getattr(model, "optimizer", None), "parameter_offload", None)
        self._coordinator: Any = None if offload is None else offload.get_param_coordinator()
        self._complete: dict[str, dict[str, Any]] = {}
        self._kind, self._passes = "other", 0

    def trunk(self) -> None:
        """A micro-batch begins, with a pass through the trunk."""
        self._passes = 0
        self._enter("trunk")

    def upper(self) -> None:
        """A pass through the upper part begins."""
        self._passes += 1
        self._enter(f"upper part, {self._passes}")

    def other(self) -> None:
        """Passes through the whole model may follow. All ranks must call it."""
        self._enter("other")

    def _enter(self, kind: str) -> None:
        if self._coordinator is None:
            return
        state = vars(self._coordinator)
        self._coordinator.reset_step()  # ends the pass before, as the next call of the model would
        if self._coordinator.is_complete_trace():
            self._complete[self._kind] = {key: state[_PRIVATE + key] for key in _STATE}
        else:
            self._complete.pop(self._kind, None)
        self._kind = kind
        mode = type(state[_PRIVATE + "trace_mode"])
        unknown = {"trace_mode": mode.INVALID, "submodule_order": [], "param_order": []}
        for key, value in self._complete.get(kind, unknown).items():
            state[_PRIVATE + key] = value
