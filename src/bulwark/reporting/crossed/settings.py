"""The settings of a cross table, of its ranking and of its figure: defenses, attacks, families, utility and compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bulwark.reporting.columns import Column, Measure, attacks_on, unique
from bulwark.settings import Closed

NO_ATTACK = "none"  # the name of leaving a defense as it is
WORST = "worst"  # the name of the worst of all attacks


def without_null(given: Any) -> Any:
    """A map without the keys that are null, and with lists as the tuples that settings hold them in."""
    if isinstance(given, dict):
        return {key: without_null(value) for key, value in given.items() if value is not None}
    return tuple(given) if isinstance(given, list) else given


class Family(Measure):
    """What is defended, a metric of a benchmark, as the share that is.

    safe, unsafe: the metric where all and where nothing is defended; values between them count in proportion. Chance,
    where nothing is known, may be safe.
    """

    label: str
    safe: float
    unsafe: float

    @model_validator(mode="after")
    def _apart(self) -> Family:
        if self.safe == self.unsafe:
            raise ValueError("safe and unsafe are the same value of the metric, so that nothing tells them apart")
        return self


class Attack(Closed):
    """An attack: what follows a defense, `relearn.*` standing for all trials of the study.

    Of several steps the worst is meant, of those within the loss of utility. steps_on: further ones by the defense
    that they know. kind: fixed beforehand; tuned, the worst of a space; adaptive, which aims at how defenses work.
    """

    label: str
    kind: Literal["fixed", "tuned", "adaptive"]
    steps: tuple[str, ...] = ()
    steps_on: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("steps_on", mode="before")
    @classmethod
    def _taken_out(cls, given: Any) -> Any:
        return without_null(given)

    @model_validator(mode="after")
    def _has_steps(self) -> Attack:
        if not (self.steps or self.steps_on):
            raise ValueError("an attack is made of steps, or of steps_on, {defense: [step, …]}")
        return self

    def over(self, defense: str) -> tuple[str, ...]:
        """The recipes that it makes of a defense; trials by their common name."""
        return attacks_on(defense, (*self.steps, *self.steps_on.get(defense, ())))


class Utility(Measure):
    """What an attack must not cost too much of: at most the share `loss` of what the defense has before it."""

    label: str
    loss: float = Field(0.1, ge=0, lt=1)


class Compute(Closed):
    """What attacks cost: a metric of an analysis of the checkpoints that they make."""

    analysis: str
    metric: str
    label: str


class Cross(Closed):
    """defenses: {recipe: label}; attacks, families: {name: settings}. All in the order in which they are shown; what is
    null is taken out, as an overlay may do.
    """

    defenses: dict[str, str] = Field(min_length=1)
    attacks: dict[str, Attack] = Field(min_length=1)
    families: dict[str, Family] = Field(min_length=1)
    utility: Utility
    compute: Compute

    @field_validator("defenses", "attacks", "families", mode="before")
    @classmethod
    def _taken_out(cls, given: Any) -> Any:
        return without_null(given)

    @model_validator(mode="after")
    def _known(self) -> Cross:
        for name in (NO_ATTACK, WORST):
            if name in self.attacks:
                raise ValueError(f'attacks: "{name}" has a meaning of its own; give the attack another name')
        if reserved := {"utility", "seconds"} & set(self.families):
            raise ValueError(f'families: "{min(reserved)}" has a meaning of its own; give the family another name')
        for name, attack in self.attacks.items():
            if spared := [defense for defense in self.defenses if not attack.over(defense)]:
                raise ValueError(f'attacks.{name}: makes nothing of "{spared[0]}", whose cells would be empty')
            if unknown := [defense for defense in attack.steps_on if defense not in self.defenses]:
                raise ValueError(f'attacks.{name}.steps_on: "{unknown[0]}" is none of the defenses')
        return self

    def measured(self) -> list[tuple[str, str | None, bool]]:
        """(benchmark, metric, whether it has to be measured) of all that it shows."""
        shown: list[tuple[str, str | None, bool]] = [(of.benchmark, of.metric, True) for of in self.families.values()]
        shown.append((self.utility.benchmark, self.utility.metric, True))
        return [*shown, (self.compute.analysis, self.compute.metric, True)]

    def columns(self) -> list[Column]:
        """The metrics of its families and of its utility as they are, for claims on them."""
        shown = [(of, "lower" if of.safe < of.unsafe else "higher") for of in self.families.values()]
        return [
            Column(benchmark=of.benchmark, metric=of.metric, label=of.label, better=better)
            for of, better in [*shown, (self.utility, "higher")]
        ]

    def attacked(self) -> tuple[str, ...]:
        """The recipes under attack, trials by their common name."""
        each: Iterable[str] = (
            recipe for defense in self.defenses for attack in self.attacks.values() for recipe in attack.over(defense)
        )
        return unique(each)
