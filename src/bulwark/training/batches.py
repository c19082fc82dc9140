"""Batches: which examples make up each optimizer step, and how their tokens lie in tensors.

The examples of a step are a pure function of seed and step, whatever the number of ranks, the micro-batch size or
packing; these only decide how a step is carried out. So a resumed run needs no more than the number of its step.
The number of labelled tokens of the whole step is known beforehand, on every rank, and every micro-batch carries
it: dividing by it makes the loss a mean over the tokens of the step, not a mean of means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bulwark.errors import BulwarkError

if TYPE_CHECKING:
    from bulwark.prompts.builder import Prompt
    from bulwark.training.settings import TrainingSettings

IGNORED = -100
_STEPS_PER_GROUP = 16
"""Length grouping sorts this many steps' worth of shuffled examples: enough to save most of the padding, and few
enough that an epoch still mixes."""

Row = tuple[int, ...]
"""The numbers of the examples in one row of a batch: one of them, or several when packed, or none (a filler)."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    input_ids, attention_mask, labels: [batch, seq], padded on the right. input_ids carry their roles; labels are
        plain ids or -100.
    position_ids: [batch, seq] when packed, counting from 0 in each example; None otherwise.
    target_positions: [targets], where in the flattened [batch·seq] the hidden states stand that predict `targets`
        (plain ids, [targets]): one before each label.
    rows: the example numbers of each row.
    step_tokens, step_sequences, step_positions: labelled tokens, examples, and tokens without padding of the whole
        optimizer step, over all micro-batches and ranks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor | None
    target_positions: Tensor
    targets: Tensor
    rows: tuple[Row, ...]
    step_tokens: int
    step_sequences: int
    step_positions: int

    def to(self, device: torch.device) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    @property
    def positions(self) -> Tensor:
        """Where tokens stand in the flattened [batch·seq], padding left out."""
        return self.attention_mask.flatten().nonzero().squeeze(1)

    def inputs(self) -> dict[str, Tensor]:
        """What a causal LM needs to see.

        The mask is left out: padding stands on the right, where causal attention cannot see it, and attention
        without a mask is faster. Packed examples are told apart by their positions, which transformers turns into
        block-diagonal attention only if there is no mask.
        """
        return {"input_ids": self.input_ids} | (
            {"position_ids": self.position_ids} if self.position_ids is not None else {}
        )


class StepBatches:
    """The micro-batches of each optimizer step for one rank.

    examples: prompts with labels. flatten: lay the rows of a packed micro-batch end to end in a single row, as
    flash attention wants them. Raises BulwarkError for an empty data set or one without anything to learn.
    """

    def __init__(
        self,
        examples: Sequence[Prompt],
        *,
        batch_size: int,
        micro_batch_size: int,
        pad_id: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        packed_length: int | None = None,
        group_by_length: bool = True,
        flatten: bool = False,
    ) -> None:
        if not examples:
            raise BulwarkError("There are no examples to train on: the data set is empty.")
        if any(example.labels is None for example in examples):
            raise BulwarkError("Examples need labels; build them with PromptBuilder.example, not .prompt.")
        self.ids = [np.array(example.ids, dtype=np.int64) for example in examples]
        self.labels = [_without_first(np.array(example.labels, dtype=np.int64)) for example in examples]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.targets = np.array([int((labels != IGNORED).sum()) for labels in self.labels])
        if not self.targets.any():
            raise BulwarkError(
                "No example has a token to learn: every label is masked. The responses are empty, or max_tokens "
                "cuts them away."
            )
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.pad_id, self.seed, self.rank, self.ranks = pad_id, seed, rank, ranks
        self.packed_length = max(packed_length, int(self.lengths.max())) if packed_length else None
        self.group_by_length, self.flatten = group_by_length, flatten
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.ids) / self.batch_size)

    def examples_of(self, step: int) -> np.ndarray:
        """The example numbers of optimizer step `step` (from 0), over all ranks, longest first."""
        epoch, within = divmod(step, self.steps_per_epoch)
        chosen = self._epoch(epoch)[within]
        return chosen[np.argsort(-self.lengths[chosen], kind="stable")]

    def tokens_of(self, step: int) -> int:
        """Tokens that step `step` reads, over all ranks, without padding."""
        return int(self.lengths[self.examples_of(step)].sum())

    def of_step(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of optimizer step `step`; every rank gets equally many, some of them of filler."""
        chosen = self.examples_of(step)
        rows = self._packed(chosen) if self.packed_length else [(int(example),) for example in chosen]
        sizes = {
            "step_tokens": int(self.targets[chosen].sum()),
            "step_sequences": len(chosen),
            "step_positions": int(self.lengths[chosen].sum()),
        }
        together = self.micro_batch_size * self.ranks
        for start in range(0, len(rows), together):
            # Neighbours are of like length, so ranks wait little for each other.
            yield self._collated(rows[start : start + together][self.rank :: self.ranks], sizes)

    def alike(self, batch: Batch) -> Batch:
        """The batch of the same example numbers, row by row, of these examples (the other responses of pairs, say)."""
        return replace(self.of_rows(batch.rows), step_sequences=batch.step_sequences)

    def of_rows(self, rows: Sequence[Row]) -> Batch:
        """A batch of these rows, as if it were a whole step."""
        chosen = [example for row in rows for example in row]
        sizes = {
            "step_tokens": int(self.targets[chosen].sum()),
            "step_sequences": len(chosen),
            "step_positions": int(self.lengths[chosen].sum()),
        }
        return self._collated(rows, sizes)

    def _epoch_order(self, epoch: int) -> list[np.ndarray]:
        """The example numbers of each step of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.ids))
        whole = len(order) // self.batch_size * self.batch_size
        steps, rest = order[:whole], order[whole:]
        if self.group_by_length:
            groups = [
                steps[start : start + _STEPS_PER_GROUP * self.batch_size]
                for start in range(0, whole, _STEPS_PER_GROUP * self.batch_size)
            ]
            steps = np.concatenate(
                [group[np.argsort(self.lengths[group], kind="stable")] for group in groups] or [steps]
            )
        steps = steps.reshape(-1, self.batch_size)
        if self.group_by_length:
            steps = steps[generator.permutation(len(steps))]
        return [*steps, rest] if len(rest) else list(steps)

    def _packed(self, chosen: np.ndarray) -> list[Row]:
        """Fill rows of `packed_length` tokens, first fit, with examples that come longest first."""
        rows: list[list[int]] = []
        room: list[int] = []
        for example in chosen:
            length = int(self.lengths[example])
            row = next((row for row, free in enumerate(room) if free >= length), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(self.packed_length)
            rows[row].append(int(example))
            room[row] -= length
        return [tuple(row) for row in sorted(rows, key=lambda row: -sum(self.lengths[example] for example in row))]

    def _collated(self, rows: Sequence[Row], sizes: dict[str, int]) -> Batch:
        rows = tuple(rows) or ((),)
        if self.packed_length and self.flatten:
            rows = (tuple(example for row in rows for example in row),)
        width = max(1, *(int(self.lengths[list(row)].sum()) for row in rows))
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            start = 0
            for example in row:
                end = start + self.lengths[example]
                ids[number, start:end] = self.ids[example]
                labels[number, start:end] = self.labels[example]
                mask[number, start:end] = 1
                positions[number, start:end] = np.arange(end - start)
                start = end
            positions[number, start:] = np.arange(width - start)
        labelled = np.flatnonzero(labels != IGNORED)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(positions) if self.packed_length else None,
            target_positions=torch.from_numpy(labelled - 1),
            targets=torch.from_numpy(labels.reshape(-1)[labelled]),
            rows=rows,
            **sizes,
        )


def training_batches(
    examples: Sequence[Prompt], settings: TrainingSettings, *, seed: int, ranks: int, **layout: Any
) -> StepBatches:
    """The batches that `settings` asks for; layout: pad_id, rank, flatten.

    Raises ConfigurationError when batch_size does not divide evenly.
    """
    settings.accumulation(ranks)
    return StepBatches(
        examples,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        seed=seed,
        ranks=ranks,
        packed_length=_packed_length(examples, settings),
        group_by_length=settings.group_by_length,
        **layout,
    )


def evaluation_batches(examples: Sequence[Prompt], settings: TrainingSettings, **layout: Any) -> StepBatches:
    """All examples as one step, so that the shares of its micro-batches add up to the mean loss per token."""
    return StepBatches(
        examples,
        batch_size=max(1, len(examples)),
        micro_batch_size=settings.micro_batch_size,
        packed_length=_packed_length(examples, settings),
        **layout,
    )


def _packed_length(examples: Sequence[Prompt], settings: TrainingSettings) -> int | None:
    if not settings.packing:
        return None
    return settings.max_tokens or max((len(example.ids) for example in examples), default=1)


def _without_first(labels: np.ndarray) -> np.ndarray:
    """The first token of an example is predicted from nothing; in a packed row it would be from another example."""
    labels[:1] = IGNORED
    return labels
