"""Pairs of a harmful and a harmless answer to one prompt, and where the two differ (RepNoise)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bulwark.errors import BulwarkError
from bulwark.training.batches import IGNORED, Batch, StepBatches

if TYPE_CHECKING:
    from bulwark.prompts.builder import Prompt


def differing(prompt: Prompt, other: Prompt) -> Prompt:
    """The prompt with labels only where its token is not the other's at the same place, or the other has ended.

    Of a pair with one prompt that is the answers, but for what both have in the same place (RepNoise's mask).
    """
    same = [mine == theirs for mine, theirs in zip(prompt.ids, other.ids, strict=False)]
    same += [False] * (len(prompt.ids) - len(same))
    labels = [IGNORED if equal else label for label, equal in zip(prompt.labels or [], same, strict=True)]
    return replace(prompt, labels=labels)


def differing_sides(pairs: Sequence[tuple[Prompt, Prompt]]) -> tuple[list[Prompt], list[Prompt]]:
    """Both sides of all pairs, each with labels where it differs from the other.

    Raises BulwarkError for a pair whose sides are the same as far as max_tokens lets them be read.
    """
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for number, (one, other) in enumerate(pairs, start=1):
        for side, prompt in zip(sides, (differing(one, other), differing(other, one)), strict=True):
            if all(label == IGNORED for label in (prompt.labels or [])[1:]):
                raise BulwarkError(
                    f"Pair {number} of the forget set: within training.max_tokens one answer has no token that differs "
                    "from the other's. Raise it, or remove the pair."
                )
            side.append(prompt)
    return sides


class Opposites:
    """The other side of the pairs, in the batches that `batches` makes of one side."""

    def __init__(self, prompts: Sequence[Prompt], batches: StepBatches) -> None:
        self.prompts, self.batches = prompts, batches
        self.targets = np.array([sum(label != IGNORED for label in (prompt.labels or [])[1:]) for prompt in prompts])

    def of(self, batch: Batch, step: int) -> Batch:
        """The batch of the other side's examples that belong to those of `batch` at an optimizer step."""
        chosen = [example for row in batch.rows for example in row]
        total = int(self.targets[self.batches.examples_of(step)].sum())
        if not chosen:
            return replace(batch, step_tokens=total)
        prompts = [self.prompts[example] for example in chosen]
        made = StepBatches(prompts, batch_size=len(prompts), micro_batch_size=len(prompts), pad_id=self.batches.pad_id)
        [other] = made.of_step(0)
        return replace(other, step_tokens=total, step_sequences=batch.step_sequences).to(batch.input_ids.device)


def flattened(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[examples, seq·hidden]: each example's hidden states, with noughts where it has no label."""
    mask = (batch.labels != IGNORED).unsqueeze(-1)
    real = torch.tensor([bool(row) for row in batch.rows], device=states.device)
    return (states * mask).flatten(1)[real]
