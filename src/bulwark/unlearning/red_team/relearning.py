"""Relearning: fine-tuning that brings back what a defense took out (TAR, arXiv 2408.00761, Sec. 5 and App. F).

The loss is the next token's cross-entropy. What differs between adversaries is the data, the weights that are trained
and how; all of it is in the settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch import nn

from bulwark.errors import ConfigurationError
from bulwark.models.anatomy import blocks_of
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective
from bulwark.unlearning.red_team.settings import RelearningSettings


class Relearning(Objective):
    """Next-token training on the attacked data set, or on it and a second one by turns.

    Raises ConfigurationError for a switch that leaves one of the two sets without a step.
    """

    def __init__(self, course: Course, settings: RelearningSettings) -> None:
        self._retain: StepBatches | None = None
        if settings.first_layer is not None:
            train_from(course.model, settings.first_layer)
        if settings.retain is None:
            return
        examples = course.examples_from("retain")
        self._truncated = examples.truncated
        self._retain = course.batches(examples.prompts, "retain")
        self._turns = turns(settings, course.total_steps, course.job.seed)

    def batches_from(self, own: StepBatches) -> StepBatches:
        return own if self._retain is None else ByTurns(own, self._retain, self._turns)

    def report(self) -> dict[str, Any]:
        """How many optimizer steps took which data set, where there are two."""
        if self._retain is None:
            return {}
        retain = sum(self._turns)
        return {
            "relearning": {
                "steps": {"forget": len(self._turns) - retain, "retain": retain},
                "retain_examples": len(self._retain.ids),
                "retain_truncated": self._truncated,
            }
        }


class ByTurns(StepBatches):
    """Two data sets, of which each optimizer step takes one; each goes on where it was when its turn comes again.

    retains: for each optimizer step, whether it takes the second set. An epoch is one of the first set.
    """

    def __init__(self, forget: StepBatches, retain: StepBatches, retains: Sequence[bool]) -> None:
        self._sets = (forget, retain)
        before = [0, *accumulate(retains)][:-1]  # steps of the retain set before each step
        self._places = [
            (int(it), taken if it else step - taken)
            for step, (it, taken) in enumerate(zip(retains, before, strict=True))
        ]
        self.targets = forget.targets

    @property
    def steps_per_epoch(self) -> int:
        return self._sets[0].steps_per_epoch

    def examples_of(self, step: int) -> np.ndarray:
        which, number = self._places[step]
        return self._sets[which].examples_of(number)

    def tokens_of(self, step: int) -> int:
        which, number = self._places[step]
        return self._sets[which].tokens_of(number)

    def of_step(self, step: int) -> Iterator[Batch]:
        which, number = self._places[step]
        return self._sets[which].of_step(number)


def turns(settings: RelearningSettings, total: int, seed: int) -> list[bool]:
    """For each of `total` optimizer steps whether it takes the retain set.

    Raises ConfigurationError for a switch so early or late that it leaves one of the sets out.
    """
    if settings.switch is None:
        of_mixture = int.from_bytes(hashlib.sha256(f"{seed}/mixture".encode()).digest()[:6], "big")
        return (np.random.default_rng(of_mixture).random(total) < settings.mixture).tolist()
    first = settings.switch.steps(total)
    if not 0 < first < total:
        raise ConfigurationError(
            f"switch.share {settings.switch.share:g} of {total} optimizer steps gives {first} to the first data set "
            f"and {total - first} to the second; each needs at least one."
        )
    retain_first = settings.switch.first == "retain"
    return [(step < first) == retain_first for step in range(total)]


def train_from(model: nn.Module, first: int) -> None:
    """Freeze all that comes before decoder block `first` (from 1): the input embedding and the blocks before it.

    Raises ConfigurationError for a block that the model does not have.
    """
    blocks = blocks_of(model)
    if not 1 <= first <= len(blocks):
        raise ConfigurationError(
            f"first_layer: {first} is no decoder block of this model, which has 1 to {len(blocks)}."
        )
    for part in (model.get_input_embeddings(), *blocks[: first - 1]):
        part.requires_grad_(False)
