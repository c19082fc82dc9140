"""What does not belong together: inputs of the forget set with labels or answers of the retain set (LLMU).

Which of the retain set's examples goes with an example is a function of the seed, the optimizer step and the example,
so that it depends neither on ranks nor on micro-batches, and a resumed run goes on with the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bulwark.data.records import Conversation, Turn
from bulwark.errors import BulwarkError
from bulwark.training.batches import IGNORED, Batch, StepBatches
from bulwark.training.finetuning import Course, examples_of

if TYPE_CHECKING:
    from bulwark.prompts.builder import Prompt


def drawn(seed: int, step: int, example: int, count: int, among: int) -> list[int]:
    """`count` numbers below `among` for an example at a step."""
    return np.random.default_rng([seed, step, example]).integers(among, size=count).tolist()


def foreign_labels(
    batch: Batch, lengths: Sequence[int], retain: Sequence[Prompt], seed: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The labels of one drawn retain example for each example of a batch, token by token as far as both reach.

    lengths: of all forget examples. Returns, each [n] and on the CPU: where in the flattened [batch·seq] a label is to
    be predicted, the label, and which of the batch's examples it is for, counted from 0.
    """
    found: list[tuple[int, int, int]] = []
    owner = 0
    for number, row in enumerate(batch.rows):
        start = number * batch.input_ids.shape[1]
        for example in row:
            length = int(lengths[example])
            [other] = drawn(seed, step, example, 1, len(retain))
            labels = retain[other].labels[1:length]
            found += [(start + place, label, owner) for place, label in enumerate(labels) if label != IGNORED]
            start, owner = start + length, owner + 1
    columns = zip(*found, strict=True) if found else ((), (), ())
    positions, labels, owners = (torch.tensor(column, dtype=torch.long) for column in columns)
    return positions, labels, owners


def foreign_answers(
    batch: Batch, forget: Sequence[Conversation], course: Course, step: int, count: int
) -> Iterator[Batch]:
    """`count` batches like this one, with the prompts of its examples and answers of drawn retain records.

    A batch of filler gives itself, so that all ranks go through the model equally often.
    """
    chosen = [example for row in batch.rows for example in row]
    others = {example: drawn(course.job.seed, step, example, count, len(course.records)) for example in chosen}
    for turn in range(count):
        if not chosen:
            yield batch
            continue
        records = [
            _answered(forget[example], course.records[others[example][turn]], str(place))
            for place, example in enumerate(chosen)
        ]
        prompts = examples_of(records, course.builder, "response", course.method).prompts
        if len(prompts) < len(records):
            raise BulwarkError(
                "A prompt of the forget set leaves no room for an answer of the retain set within training.max_tokens. "
                "Raise it."
            )
        batches = StepBatches(prompts, batch_size=len(prompts), micro_batch_size=len(prompts), pad_id=course.pad_id)
        yield next(batches.of_step(0)).to(batch.input_ids.device)


def check_conversations(*sets: Sequence[object]) -> None:
    """Raise BulwarkError unless all records are conversations, whose answers can be exchanged."""
    if not all(isinstance(record, Conversation) for records in sets for record in records):
        raise BulwarkError(
            'Random answers need conversations in retain and forget set. Take such sets, or set mismatch: "labels".'
        )


def _answered(asked: Conversation, other: Conversation, name: str) -> Conversation:
    answer = Turn(role="response", text=other.turns[-1].text)
    return Conversation(id=name, turns=(*asked.turns[:-1], answer))
