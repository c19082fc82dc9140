"""Which attack is simulated when: a draw per trajectory, and batches that are a pure function of seed and step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.unlearning.tampering.settings import TamperingSettings


@dataclass(frozen=True)
class Draw:
    """What one trajectory does. number: of the trajectory, over all outer steps. switch: the first inner step that
    takes the attacked data; before it, the adversary trains on its other data set."""

    number: int
    adversary: str
    learning_rate: float
    switch: int


@dataclass
class Attacks:
    """The adversaries of a step with their batches, on this rank."""

    course: Course
    settings: TamperingSettings
    _streams: dict[str, StepBatches] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        inner = self.settings.inner
        for adversary in self.settings.adversaries:
            for kind in ("attack", "before") if adversary.before is not None else ("attack",):
                key = f"{kind}_{adversary.name}"
                if adversary.side is not None:
                    examples = self.course.preferences_from(key, adversary.side)
                else:
                    examples = self.course.examples_from(key)
                self._streams[key] = self.course.batches(
                    examples.prompts,
                    key,
                    batch_size=inner.batch_size,
                    micro_batch_size=inner.micro_batch_size,
                )

    def draw(self, number: int) -> Draw:
        """The attack of trajectory `number`; the same on every rank, and whatever was drawn before."""
        settings = self.settings
        rng = np.random.default_rng([self.course.job.seed, number, 0x7A2])
        weights = np.array([adversary.probability for adversary in settings.adversaries])
        drawn = settings.adversaries[rng.choice(len(weights), p=weights / weights.sum())]
        rate = settings.inner.learning_rates[rng.integers(len(settings.inner.learning_rates))]
        switch = math.floor(rng.beta(*drawn.switch) * settings.inner.steps) if drawn.before is not None else 0
        return Draw(number, drawn.name, rate, switch)

    def batches(self, draw: Draw, inner_step: int) -> Iterator[Batch]:
        """This rank's micro-batches of one inner step."""
        kind = "before" if inner_step < draw.switch else "attack"
        return self._streams[f"{kind}_{draw.adversary}"].of_step(draw.number * self.settings.inner.steps + inner_step)

    def report(self) -> dict[str, Any]:
        return {name: len(stream.ids) for name, stream in self._streams.items()}
