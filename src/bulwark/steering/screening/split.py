"""A model in two parts: the trunk, blocks 1 … l, and the upper part above it, each run as often as needed.

The parts are run by calling the model itself with the other part's blocks skipped, so masks, positions, the final
norm, soft caps and whatever else a family does stay its own, and an engine's hooks (ZeRO-3) see ordinary calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bulwark.models import hooks
from bulwark.models.anatomy import blocks_of, check_layer
from bulwark.steering.screening.traces import Traces
from bulwark.training.batches import Batch
from bulwark.training.objectives import target_logits, target_losses


class SplitModel:
    """`model` (a causal LM, or the engine around it) split after block `layer`.

    traces: of the engine, where `model` is the module in it; None for those of `model`.
    Raises ConfigurationError for a layer key outside 1 … N-1.
    """

    def __init__(self, model: nn.Module, layer: int, traces: Traces | None = None) -> None:
        self.model, self.layer = model, layer
        self.traces = traces or Traces(model)
        self.blocks = blocks_of(model)
        check_layer(layer, len(self.blocks))
        self._puts_out_tuples = False

    def trunk(self, batch: Batch) -> Tensor:
        """The residual stream h_l [batch, seq, hidden] after block `layer`, with its graph where gradients are on."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: tuple, output: Tensor | tuple) -> None:
            kept.append(hooks.hidden_of(output))
            self._puts_out_tuples = output is not kept[0]

        handle = self.blocks[self.layer - 1].register_forward_hook(keep)
        nothing = replace(batch, target_positions=batch.target_positions[:0], targets=batch.targets[:0])
        self.traces.trunk()
        try:
            with self._skipping(range(self.layer, len(self.blocks))):
                target_logits(self.model, nothing)
        finally:
            handle.remove()
        return kept[0]

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """What blocks l+1 … N make of h_l `hidden` [batch, seq, hidden]: logits [targets, vocabulary]."""
        return self._upper(target_logits, hidden, batch)

    def token_losses(self, hidden: Tensor, batch: Batch, twice: bool = False) -> Tensor:
        """The cross-entropy of each target given h_l, [targets] in fp32, in the order of `batch.targets`.

        twice: so that it can be differentiated twice, for which all logits have to be there.
        """
        if twice:
            return F.cross_entropy(self._upper(target_logits, hidden, batch).float(), batch.targets, reduction="none")
        return self._upper(target_losses, hidden, batch)

    def _upper(self, ask: Callable[..., Tensor], hidden: Tensor, batch: Batch) -> Tensor:
        """What `ask` finds in a pass of h_l `hidden` through blocks l+1 … N."""
        inputs = {key: value for key, value in batch.inputs().items() if key != "input_ids"}
        self.traces.upper()
        with self._skipping(range(self.layer), hidden):
            return ask(self.model, batch, inputs | {"inputs_embeds": hidden})

    @contextlib.contextmanager
    def _skipping(self, numbers: range, hidden: Tensor | None = None) -> Iterator[None]:
        """Within it these blocks pass on what they are given or, if there is one, `hidden`."""
        real = {str(number): self.blocks[number] for number in numbers}
        for name, block in real.items():
            self.blocks._modules[name] = _Skipped(block, hidden, self._puts_out_tuples)
        try:
            yield
        finally:
            self.blocks._modules.update(real)


class _Skipped(nn.Module):
    """Stands in a block's place; everything but `forward` is the block's."""

    def __init__(self, block: nn.Module, hidden: Tensor | None, tuples: bool) -> None:
        super().__init__()
        self.__dict__.update(block=block, hidden=hidden, tuples=tuples)  # not as parts of a module

    def __getattr__(self, name: str):
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *_, **__) -> Tensor | tuple[Tensor]:
        passed = hidden_states if self.hidden is None else self.hidden
        return (passed,) if self.tuples else passed


def target_rows(batch: Batch) -> Tensor:
    """The row of the batch in which each target stands, [targets]."""
    return batch.target_positions.div(batch.labels.shape[1], rounding_mode="floor")


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The batch of only these rows [k], in increasing order; what it says of the whole step stays.

    Rows hold one example each (no packing).
    """
    width = batch.labels.shape[1]
    place = torch.full((len(batch.labels),), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    of_target = place[target_rows(batch)]
    chosen = of_target >= 0
    positions = of_target[chosen] * width + batch.target_positions[chosen] % width
    return replace(
        batch,
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        labels=batch.labels[rows],
        position_ids=None if batch.position_ids is None else batch.position_ids[rows],
        target_positions=positions,
        targets=batch.targets[chosen],
        rows=tuple(batch.rows[number] for number in rows.tolist()),
    )
