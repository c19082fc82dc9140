"""What is shown of results: metrics, the worst case of attacks, and how recipes are named.

A name of a recipe may stand for several: `tar+relearn.*` for all trials of relearn that the study runs after tar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from bulwark.settings import Closed

BASE = "base"


class Measure(Closed):
    """A metric of a benchmark, with a value per record."""

    benchmark: str
    metric: str


class WorstCase(Closed):
    """In the place of a recipe, the attack on it that does most harm and costs little utility (evaluation.worst_case).

    attacks: what follows the recipe, `relearn.*` standing for all trials of the study. attacks_on: further ones by the
    recipe that they know. utility, loss: at most this share of what the recipe has before the attack is lost. harm:
    which end of the metric shown is most harm.
    """

    attacks: tuple[str, ...] = ()
    attacks_on: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    utility: Measure
    loss: float = Field(0.05, ge=0, lt=1)
    harm: Literal["highest", "lowest"] = "highest"

    @model_validator(mode="after")
    def _has_attacks(self) -> WorstCase:
        if not (self.attacks or self.attacks_on):
            raise ValueError("a worst case is over attacks, or over attacks_on, {recipe: [attack, …]}")
        return self

    def over(self, recipe: str) -> tuple[str, ...]:
        """The recipes that attack `recipe`."""
        return attacks_on(recipe, (*self.attacks, *self.attacks_on.get(recipe, ())))


class Column(Closed):
    """One metric of one benchmark or, under the key `analysis`, of an analysis.

    percent: shown times 100. out_of: shown on a scale of 0 … out_of instead, as for scores of a judge. digits: after
    the point; null means 1 for percent, 2 for a scale, 3 otherwise. worst_case: of the attacks on the row's recipe.
    """

    benchmark: str = Field(validation_alias=AliasChoices("benchmark", "analysis"))
    metric: str
    label: str
    percent: bool = True
    out_of: int | None = Field(None, ge=1)
    digits: int | None = Field(None, ge=0)
    if_measured: bool = False
    worst_case: WorstCase | None = None

    def plain(self) -> Column:
        """The same metric of a recipe itself; a worst case's label would not be of that."""
        if self.worst_case is None:
            return self
        return self.model_copy(update={"worst_case": None, "label": self.metric.replace("_", " ")})

    @property
    def places(self) -> int:
        """Digits after the point."""
        usual = 2 if self.out_of else 1 if self.percent else 3
        return usual if self.digits is None else self.digits

    @property
    def scale(self) -> int:
        """The factor from a value to the shown number."""
        return self.out_of or (100 if self.percent else 1)


class Axis(Column):
    """What harm is drawn against. log: a logarithmic axis, for what attacks cost."""

    log: bool = False


def stands_for(name: str, recipe: str) -> bool:
    """Whether `recipe` is the named one or, where that holds `.*`, is one of these trials."""
    return name == recipe or re.fullmatch(re.escape(name).replace(r"\.\*", r"\.[0-9]+"), recipe) is not None


def those_named(names: Iterable[str], recipes: Sequence[str]) -> list[str]:
    """The recipes that the names stand for, trials by themselves, in the order of the names; all if there are none.

    recipes: all that there are. A name that stands for none of them is kept, so that whoever looks it up tells of it.
    """
    names = tuple(names)
    each = ([one for one in recipes if stands_for(name, one)] or [name] for name in names)
    return list(unique(one for of_name in each for one in of_name)) if names else list(recipes)


def attacks_on(recipe: str, attacks: Iterable[str]) -> tuple[str, ...]:
    """The recipes that attack `recipe`, each attack being what follows it."""
    prefix = "" if recipe == BASE else f"{recipe}+"
    return unique(f"{prefix}{attack}" for attack in attacks)


def unique(names: Iterable[Any]) -> tuple[Any, ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(names))
