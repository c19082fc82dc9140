"""Edits of a model while it computes: several trials at once, one per row of a batch, without writing any weight.

The base weights stay as they are and are read once for all trials of a batch; ending a trial is removing the hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bulwark.abliteration.edit.edits import Form, LowRank, form
from bulwark.abliteration.edit.targets import Target, device_of, weight_of
from bulwark.abliteration.measure.directions import orthonormal
from bulwark.abliteration.settings import Normalization
from bulwark.errors import BulwarkError
from bulwark.models import hooks

Plan = dict[str, tuple[Tensor, float] | LowRank]
"""The edits of one trial: {path of a target: (directions, λ)}; λ = 0 is no edit.

directions: a unit vector [hidden] in the residual stream, or the orthonormal rows [k, hidden] of a span that is taken
out. All edits of a module in one batch are directions, or all are `LowRank`, which act on its output as they are.
"""


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
        with contextlib.ExitStack() as stack:
            for block, edit in (streams or {}).items():
                there = edit.to(device_of(block))
                stack.enter_context(hooks.replace_inputs({"stream": block}, _OfRows(there, rows).edited))
            for target in self.targets:
                edit = self.form_of(target, plans)
                if edit is not None:
                    stack.enter_context(_edited(target, _OfRows(edit, rows)))
            yield rows

    def form_of(self, target: Target, plans: Sequence[Plan]) -> Form | None:
        """The edits of a target in all plans, on its device in float32; None if none of them changes it."""
        device = device_of(target.module)
        free = [entry if isinstance(entry := plan.get(target.path), LowRank) else None for plan in plans]
        if any(entry is not None for entry in free):
            sides = ([entry and entry.a for entry in free], [entry and entry.b for entry in free])
            a, b = (_stacked(side).float().to(device) for side in sides)
            return Form(a, b)
        given = [entry if isinstance(entry := plan.get(target.path), tuple) else None for plan in plans]
        if all(entry is None or entry[1] == 0 for entry in given):
            return None
        vectors = target.seen(_stacked([entry and torch.atleast_2d(entry[0]) for entry in given]))
        if target.gain is not None:  # directions that are orthogonal behind a norm are not so before it
            vectors = torch.stack([orthonormal(rows) for rows in vectors])
        strengths = torch.tensor([0.0 if entry is None else entry[1] for entry in given])
        vectors = vectors.float().to(device)
        weight = weight_of(target.module).to(device) if self.normalization != "none" else None
        return form(vectors, strengths.to(device), self.normalization, weight)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """Matrices [k, n] of several k as one tensor [parts, largest k, n], with rows of zeros; None is all zeros."""
    some = next(part for part in parts if part is not None)
    most = max(len(part) for part in parts if part is not None)
    whole = (some.new_zeros(0, some.shape[1]) if part is None else part for part in parts)
    return torch.stack([nn.functional.pad(part, (0, 0, 0, most - len(part))) for part in whole])


@dataclass
class Rows:
    """Which trial each row of the coming batches belongs to."""

    trials: Tensor | None = None

    def are(self, trials: Tensor) -> None:
        """trials: [rows], numbers of the plans."""
        self.trials = trials


class _OfRows:
    """A form's entries for the rows of the current batch, looked up once per batch."""

    def __init__(self, edit: Form, rows: Rows) -> None:
        self.form, self._rows = edit, rows
        self._trials, self._of_rows = None, edit

    def edited(self, _: str, states: Tensor) -> Tensor:
        """The states [rows, ..., out], each row under its trial's edit; of some mixtures [rows · tokens, out]."""
        trials = self._rows.trials
        if states.dim() == 2 and trials is not None and len(states) != len(trials) and len(states) % len(trials) == 0:
            return self.edited(_, states.unflatten(0, (len(trials), -1))).flatten(0, 1)
        return self._of(states).on(states)

    def scaled(self, _: str, inputs: Tensor) -> Tensor:
        """The inputs [rows, ..., in] times s."""
        factor = self._of(inputs).s[(slice(None), *(None,) * (inputs.dim() - 2))]
        return (inputs.float() * factor).to(inputs.dtype)

    def _of(self, states: Tensor) -> Form:
        count, trials = states.shape[0], self._rows.trials
        if trials is None or len(trials) != count:
            named = "none" if trials is None else str(len(trials))
            raise BulwarkError(f"The edited model was given {count} rows, but the trials of {named} were named.")
        if self._trials is not trials:
            self._trials, self._of_rows = trials, self.form[trials.to(self.form.a.device)]
        return self._of_rows


@contextlib.contextmanager
def _edited(target: Target, edit: _OfRows) -> Iterator[None]:
    """Within it the target's output is edited, its bias left as it is."""

    def change(name: str, states: Tensor) -> Tensor:
        bias = target.bias
        return edit.edited(name, states) if bias is None else edit.edited(name, states - bias) + bias

    module = {target.path: target.module}
    scaling = contextlib.nullcontext() if edit.form.s is None else hooks.replace_inputs(module, edit.scaled)
    with hooks.replace(module, change), scaling:
        yield
