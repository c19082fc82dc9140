"""What a file under config/tables, config/figures and config/claims may say.

All three take their models, recipes and seeds from a study; a recipe or a benchmark that they name must be in it,
except benchmarks marked `if_measured`, which may be absent (the miniature's task accuracy, say).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bulwark.settings import Closed


class Column(Closed):
    """One metric of one benchmark. `percent`: shown times 100."""

    benchmark: str
    metric: str
    label: str
    percent: bool = True
    if_measured: bool = False


class _Shown(Closed):
    """What tables and figures have in common. `rows` narrows and orders the study's recipes; all of them if empty."""

    title: str
    caption: str = ""
    study: str
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[str, ...] = ()
    published: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def benchmarks(self) -> tuple[str, ...]:
        """All benchmarks that it can show."""
        return _unique(column.benchmark for column in self.columns)

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """The (benchmark, metric) that it shows."""
        return _unique((column.benchmark, column.metric) for column in self.columns)

    def required_benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the study must measure."""
        return _unique(column.benchmark for column in self.columns if not column.if_measured)

    def recipes(self) -> tuple[str, ...]:
        """The recipes that it names itself."""
        return self.rows


class Table(_Shown):
    """config/tables/: rows are (model, recipe), columns are metrics; `published` names a file of config/published."""


class Figure(_Shown):
    """config/figures/: one panel per column, one group of bars per model, one bar per recipe.

    `limits`: the vertical axis of rates, in percent. `colours`: recipe → colour; others take the colour cycle.
    """

    limits: tuple[float, float] = (0.0, 100.0)
    colours: dict[str, str] = Field(default_factory=dict)
    hatches: dict[str, str] = Field(default_factory=dict)


class Against(Closed):
    """`recipe` against `than` by one metric; what `margin` means depends on the condition, see `Condition`."""

    benchmark: str
    metric: str
    recipe: str
    than: str
    margin: float = Field(0.0, ge=0)


class Bound(Closed):
    """A metric of one recipe against a fixed `value`."""

    benchmark: str
    metric: str
    recipe: str
    value: float


class Condition(Closed):
    """One part of a claim: exactly one of the five keys.

    better     the metric is better (in its own direction) with `recipe` than with `than`; an improvement below
               `margin` is too small to matter
    not_worse  it is at most `margin` worse
    equal      it differs by less than `margin` either way
    at_least   it is at or above `value`
    at_most    it is at or below `value`
    """

    better: Against | None = None
    not_worse: Against | None = None
    equal: Against | None = None
    at_least: Bound | None = None
    at_most: Bound | None = None
    if_measured: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Condition:
        given = [key for key in _KINDS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"a condition has exactly one of {', '.join(_KINDS)}; here: {', '.join(given) or 'none'}")
        if given[0] in ("not_worse", "equal") and self.terms.margin <= 0:
            raise ValueError(f"{given[0]} needs a margin above 0: no number of records proves exact equality")
        return self

    @property
    def kind(self) -> Literal["better", "not_worse", "equal", "at_least", "at_most"]:
        """Which of the five it is."""
        return next(key for key in _KINDS if getattr(self, key) is not None)

    @property
    def terms(self) -> Against | Bound:
        """What stands under that key."""
        return getattr(self, self.kind)

    def recipes(self) -> tuple[str, ...]:
        """The one or two recipes that it speaks of."""
        terms = self.terms
        return (terms.recipe, terms.than) if isinstance(terms, Against) else (terms.recipe,)


class Claim(Closed):
    """config/claims/: a statement of a paper as conditions, all of which must hold on every model of the study.

    The first condition is the headline: its effect, interval and p-value stand for the claim.
    """

    statement: str
    source: str
    study: str
    conditions: tuple[Condition, ...] = Field(min_length=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _headline_is_measured(self) -> Claim:
        if self.conditions[0].if_measured:
            raise ValueError("the first condition is the claim's headline and cannot be if_measured")
        return self

    def benchmarks(self) -> tuple[str, ...]:
        """All benchmarks that its conditions can use."""
        return _unique(condition.terms.benchmark for condition in self.conditions)

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """The (benchmark, metric) that its conditions speak of."""
        return _unique((c.terms.benchmark, c.terms.metric) for c in self.conditions)

    def required_benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the study must measure."""
        return _unique(c.terms.benchmark for c in self.conditions if not c.if_measured)

    def recipes(self) -> tuple[str, ...]:
        """The recipes that its conditions speak of."""
        return _unique(recipe for condition in self.conditions for recipe in condition.recipes())


_KINDS = ("better", "not_worse", "equal", "at_least", "at_most")


def _unique(names) -> tuple:
    return tuple(dict.fromkeys(names))
