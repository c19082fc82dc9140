"""An attacker who adapts to a model: a command in the data, and how often the model may be asked to place it well.

The user's task stays as it is, and so do the template and every token's role: only the text of the data turn changes.
What an attacker maximises is the log-likelihood of the answer that shows that the command was carried out. `Gcg` takes
the model's gradients, `RandomSearch` and `Rewriting` only log-likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from bulwark.attacks.injections.struq import Command, Injection, injected
from bulwark.attacks.suffixes import Case, Written
from bulwark.data.records import Turn
from bulwark.prompts.builder import PromptBuilder

DATA = 1  # the number of the turn that an attacker writes


@dataclass(frozen=True)
class Task:
    """A user's task with its data, and the command that is to be carried out in its place.

    target: the answer that is made likely. number: what random draws depend on beside the seed.
    """

    instruction: str
    data: str
    command: Command
    target: str
    number: int

    @property
    def plain(self) -> Injection:
        """The command behind the data, as StruQ's naive attack has it."""
        return injected("naive", "in_domain", self.data, self.command, Random(0))

    def turns(self, data: str) -> list[Turn]:
        """The conversation with this text as the data."""
        return [Turn(role="instruction", text=self.instruction), Turn(role="data", text=data)]


@dataclass(frozen=True)
class Attempt:
    """The best text so far. loss: the mean cross-entropy of the target's tokens behind it. spent: of the budget."""

    injection: Injection
    loss: float
    spent: int


class Attacker(Protocol):
    """What can be asked of an attack. A case holds all that is known of one task."""

    def begin(self, task: Task) -> Any:
        """The case of a task. Raises BulwarkError where it cannot be attacked."""

    def run(self, cases: Sequence[Any], budget: int) -> None:
        """Improve all cases, which have spent alike, until each has spent `budget` in all."""

    def attempt(self, case: Any) -> Attempt:
        """The best text of a case that has spent something."""


class Optimiser(Protocol):
    """What improves adversarial tokens: `Gcg`, `RandomSearch`."""

    def run(self, cases: Sequence[Case], steps: int) -> None:
        """Improve all cases by `steps`."""


@dataclass
class SuffixCase(Case):
    """Adversarial tokens behind the plain command of a task."""

    task: Task = field(kw_only=True)


class SuffixAttacker:
    """Optimises a text behind the plain command, which may not say the witness itself."""

    def __init__(self, optimiser: Optimiser, builder: PromptBuilder, suffix: str) -> None:
        self._optimiser, self._builder, self._suffix = optimiser, builder, suffix

    def begin(self, task: Task) -> SuffixCase:
        turns, unspoken = task.turns(task.plain.data), task.command.witness
        written = Written(self._builder, turns, task.target, self._suffix, DATA, unspoken)
        return SuffixCase([written], task.number, task=task)

    def run(self, cases: Sequence[SuffixCase], budget: int) -> None:
        if cases:
            self._optimiser.run(cases, budget - cases[0].steps)

    def attempt(self, case: SuffixCase) -> Attempt:
        tokens, plain, (written,) = case.best, case.task.plain, case.written
        data = written.text(tokens)
        block = data.removeprefix(case.task.data)
        return Attempt(Injection(data, (block, *plain.added, written.suffix(tokens))), case.best_loss, case.steps)


def probability(loss: float, target: int) -> float:
    """Of a whole answer of `target` tokens whose mean cross-entropy is `loss`."""
    return math.exp(-loss * target)
