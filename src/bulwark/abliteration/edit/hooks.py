"""Edits of a model while it computes: several trials at once, one per row of a batch, without writing any weight.

The base weights stay as they are and are read once for all trials of a batch; ending a trial is removing the hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bulwark.abliteration.edit.edits import Form, form
from bulwark.abliteration.edit.targets import Target, weight_of
from bulwark.abliteration.settings import Normalization
from bulwark.errors import BulwarkError

Plan = dict[str, tuple[Tensor, float]]
"""The edits of one trial: {path of a target: (unit vector [hidden] in the residual stream, λ)}; λ = 0 is no edit."""


class Edits:
    """Trials over the same targets. Raises BulwarkError for a normalization that a mixture of experts does not have."""

    def __init__(self, targets: Sequence[Target], normalization: Normalization = "none") -> None:
        mixtures = [target.path for target in targets if target.mixture]
        if mixtures and normalization != "none":
            raise BulwarkError(
                f"{mixtures[0]} is a mixture of experts, whose rows have a norm per expert: the normalization "
                f'"{normalization}" is not one of its output. Set edit.normalization to none.'
            )
        self.targets = list(targets)
        self.normalization = normalization

    @contextlib.contextmanager
    def on(self, plans: Sequence[Plan], streams: Mapping[nn.Module, Form] | None = None) -> Iterator[Rows]:
        """Within it the model is edited. Say with the yielded `Rows` which trial each row of a batch belongs to.

        streams: {block: edits of the residual stream that it is given}, for what no weight does.
        """
        rows = Rows()
        handles = []
        try:
            for block, edit in (streams or {}).items():
                handles.append(_on_input(block, edit, rows))
            for target in self.targets:
                edit = self.form_of(target, plans)
                if edit is not None:
                    handles += _installed(target, edit, rows)
            yield rows
        finally:
            for handle in handles:
                handle.remove()

    def form_of(self, target: Target, plans: Sequence[Plan]) -> Form | None:
        """The edits of a target in all plans, on its device in float32; None if none of them changes it."""
        given = [plan.get(target.path) for plan in plans]
        if all(entry is None or entry[1] == 0 for entry in given):
            return None
        some = next(entry[0] for entry in given if entry is not None)
        device = _device(target.module)
        vectors = torch.stack([some.new_zeros(some.shape) if entry is None else entry[0] for entry in given])
        strengths = torch.tensor([0.0 if entry is None else entry[1] for entry in given])
        vectors = target.seen(vectors).float().to(device)
        weight = weight_of(target.module).to(device) if self.normalization != "none" else None
        return form(vectors, strengths.to(device), self.normalization, weight)


class Rows:
    """Which trial each row of the coming batches belongs to."""

    def __init__(self) -> None:
        self.trials: Tensor | None = None
        self.version = 0

    def are(self, trials: Tensor) -> None:
        """trials: [rows], numbers of the plans."""
        self.trials = trials
        self.version += 1


class _Taken:
    """A form's entries for the rows of the current batch, looked up once per batch."""

    def __init__(self, edit: Form, rows: Rows) -> None:
        self._edit, self._rows = edit, rows
        self._version, self._of_rows = -1, None

    def __call__(self, count: int) -> Form:
        if self._rows.trials is None or len(self._rows.trials) != count:
            told = "none" if self._rows.trials is None else str(len(self._rows.trials))
            raise BulwarkError(f"The edited model was given {count} rows, but the trials of {told} were named.")
        if self._version != self._rows.version:
            self._of_rows = self._edit[self._rows.trials.to(self._edit.a.device)]
            self._version = self._rows.version
        return self._of_rows


def _on_input(block: nn.Module, edit: Form, rows: Rows) -> Any:
    taken = _Taken(edit, rows)

    def change(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (taken(args[0].shape[0]).on(args[0]), *args[1:]), kwargs
        states = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": taken(states.shape[0]).on(states)}

    return block.register_forward_pre_hook(change, with_kwargs=True)


def _installed(target: Target, edit: Form, rows: Rows) -> list:
    taken = _Taken(edit, rows)

    def scale(_: nn.Module, args: tuple) -> tuple:
        inputs = args[0]
        factor = taken(inputs.shape[0]).s[(slice(None), *(None,) * (inputs.dim() - 2))]
        return ((inputs.float() * factor).to(inputs.dtype), *args[1:])

    def change(_: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        states = output[0] if isinstance(output, tuple) else output
        bias = target.bias
        bare = states if bias is None else states - bias
        bare = taken(states.shape[0]).on(bare)
        states = bare if bias is None else bare + bias
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [target.module.register_forward_hook(change)]
    if edit.s is not None:
        handles.append(target.module.register_forward_pre_hook(scale))
    return handles


def _device(module: nn.Module) -> torch.device:
    return next((part.device for part in (*module.parameters(), *module.buffers())), torch.device("cpu"))
