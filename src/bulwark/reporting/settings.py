"""The settings of files under config/tables, config/figures and config/claims.

All three take models, recipes and seeds from a study. A recipe or a benchmark that they name must be in the study,
except benchmarks marked `if_measured`, which may be absent (the miniature's task accuracy, for example).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from bulwark.errors import ConfigurationError
from bulwark.reporting.columns import (
    Activations,
    Adversaries,
    Attacks,
    AverageCase,
    Column,
    Cosine,
    Curves,
    Front,
    Layers,
    Lines,
    Measure,
    OfRecipe,
    Progress,
    Residuals,
    Roc,
    Scatter,
    Tokens,
    Trajectory,
    WorstCase,
    filled,
    unique,
)
from bulwark.reporting.crossed.settings import Cross
from bulwark.settings import Closed, validated


class _OfStudy(Closed):
    """What tables, figures and claims have in common: a study, and what of it they name."""

    study: str

    @abstractmethod
    def _measured(self) -> Iterable[tuple[str, str | None, bool]]:
        """(benchmark, metric, whether the study must measure it); the metric is None if all of the result is meant."""

    def benchmarks(self) -> tuple[str, ...]:
        """All benchmarks (and analyses) that it names."""
        return unique(benchmark for benchmark, *_ in self._measured())

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """The (benchmark, metric) pairs that it names."""
        return unique((benchmark, metric) for benchmark, metric, _ in self._measured() if metric is not None)

    @abstractmethod
    def recipes(self) -> tuple[str, ...]:
        """The recipes that it names itself, `.*` standing for trials."""

    def trained(self) -> tuple[str, ...]:
        """Those of them of which it shows analyses."""
        return self.recipes()

    @property
    def lacks_attacks(self) -> bool:
        """Whether the word `study` stands for attacks that are not known."""
        told = self.model_dump(mode="json")
        return filled(told, []) != told

    def of_study(self, attacks: tuple[str, ...]) -> Self:
        """The same where the word `study` stands for these attacks; if there are none, as it was."""
        if not attacks or not self.lacks_attacks:
            return self
        changed = filled(self.model_dump(mode="json"), list(attacks))
        return validated(type(self), changed, f"what shows studies.{self.study}")

    def required_benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the study must measure."""
        return unique(benchmark for benchmark, _, required in self._measured() if required)


class Note(Closed):
    """A part of a caption that is true only where what it speaks of is shown.

    columns: labels of columns, of which one has to be shown; rows: recipes, likewise; published: whether there has to
    be a published number. All that are given must be met.
    """

    text: str
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    published: bool = False

    @model_validator(mode="after")
    def _depends(self) -> Note:
        if not (self.columns or self.rows or self.published):
            raise ValueError("a note depends on columns, rows or published; what is always true goes into the caption")
        return self


class Average(Closed):
    """The mean of columns, named by their labels, all on one scale; columns that are not measured are left out."""

    label: str
    of: tuple[str, ...] = Field(min_length=2)


class _Shown(_OfStudy):
    """What tables and figures have in common. `rows` selects and orders the study's recipes; all of them if empty.

    averages: further columns (of lines: panels, before the others), means of others.
    """

    title: str
    caption: str = ""
    notes: tuple[Note, ...] = ()
    columns: tuple[Column, ...]
    averages: tuple[Average, ...] = ()
    rows: tuple[str, ...] = ()
    published: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def label(self, recipe: str) -> str:
        """The name under which a recipe is shown."""
        return self.labels.get(recipe, recipe)

    def described(self, columns: Iterable[Column], rows: Iterable[str], published: bool) -> str:
        """The caption, and the notes that apply to the columns and recipes shown; published: if such numbers are."""
        labels, recipes = {column.label for column in columns}, set(rows)
        parts = [self.caption.strip()]
        for note in self.notes:
            met = not note.columns or labels & set(note.columns), not note.rows or recipes & set(note.rows)
            if all(met) and (published or not note.published):
                parts.append(note.text.strip())
        return " ".join(part for part in parts if part)

    @model_validator(mode="after")
    def _notes_of_what_is_there(self) -> _Shown:
        labels = {column.label for column in self.columns}
        for note in self.notes:
            if unknown := [label for label in note.columns if label not in labels]:
                raise ValueError(f'a note is on the column "{unknown[0]}", which is no column\'s label')
        return self

    @model_validator(mode="after")
    def _averages_of_columns(self) -> _Shown:
        scales = {column.label: (column.scale, column.percent) for column in self.columns}
        for average in self.averages:
            if unknown := [label for label in average.of if label not in scales]:
                raise ValueError(f'the average "{average.label}" is of "{unknown[0]}", which is no column\'s label')
            if len({scales[label] for label in average.of}) > 1:
                raise ValueError(f'the average "{average.label}" is of columns on different scales')
        return self

    @model_validator(mode="after")
    def _rows_under_attack(self) -> _Shown:
        if not self.rows and any(column.case for column in self.columns):
            raise ValueError("with a worst_case or an average, rows lists the recipes that are attacked")
        return self

    def _measured(self) -> Iterable[tuple[str, str | None, bool]]:
        shown = [(column.benchmark, column.metric, not column.if_measured) for column in self.columns]
        return shown + _utilities((column.worst_case, not column.if_measured) for column in self.columns)

    def recipes(self) -> tuple[str, ...]:
        return unique((*self.rows, *_attacks((column.case, self.rows) for column in self.columns)))

    def trained(self) -> tuple[str, ...]:
        return self.rows


class Table(_Shown):
    """config/tables/: rows are (model, recipe), columns are metrics; `published` names a file of config/published.

    averages come after them. compact: n and the spread over seeds are in the CSV only. cross: in the place of columns,
    of every defense under every attack; ranking: the order of these defenses is shown.
    """

    columns: tuple[Column, ...] = ()
    compact: bool = False
    cross: Cross | None = None
    ranking: bool = False

    @model_validator(mode="after")
    def _columns_or_cross(self) -> Table:
        if bool(self.columns) == bool(self.cross) or (self.ranking and not self.cross):
            raise ValueError("a table has columns or a cross, and a ranking is of a cross")
        return self

    def _measured(self) -> Iterable[tuple[str, str | None, bool]]:
        return self.cross.measured() if self.cross else super()._measured()

    def recipes(self) -> tuple[str, ...]:
        return unique((*self.cross.defenses, *self.cross.attacked())) if self.cross else super().recipes()

    def trained(self) -> tuple[str, ...]:
        return self.cross.attacked() if self.cross else super().trained()


Kind = Literal[
    "bars", "lines", "trajectory", "cosine", "scatter", "roc", "front", "progress", "residuals", "attacks",
    "adversaries", "curves", "layers", "activations", "tokens", "beside", "cross",
]  # fmt: skip
_WITH_COLUMNS = ("bars", "lines", "beside")


class Figure(_Shown):
    """config/figures/. `kind` is how it is drawn; all kinds but bars and beside have settings under a key of that name.

    Bars: one panel per column, one group of bars per model, one bar per recipe. Beside: one panel per recipe, one group
    of bars per model, one bar per column. The others: see the class of that name; of a cross also its table.

    `limits`: the vertical axis of rates, in percent. `colours`: recipe → colour; others take the colour cycle.
    """

    kind: Kind = "bars"
    columns: tuple[Column, ...] = ()
    lines: Lines | None = None
    trajectory: Trajectory | None = None
    cosine: Cosine | None = None
    scatter: Scatter | None = None
    roc: Roc | None = None
    front: Front | None = None
    progress: Progress | None = None
    residuals: Residuals | None = None
    attacks: Attacks | None = None
    adversaries: Adversaries | None = None
    curves: Curves | None = None
    layers: Layers | None = None
    activations: Activations | None = None
    tokens: Tokens | None = None
    cross: Cross | str | None = None
    limits: tuple[float, float] = (0.0, 100.0)
    colours: dict[str, str] = Field(default_factory=dict)
    hatches: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Figure:
        given = [kind for kind in get_args(Kind) if getattr(self, kind, None)]
        if given != [kind for kind in (self.kind,) if kind not in ("bars", "beside")]:
            place = "columns" if self.kind in ("bars", "beside") else self.kind
            raise ValueError(f"{self.kind}: set under {place}; here are settings for {', '.join(given) or 'nothing'}")
        if (self.kind in _WITH_COLUMNS) != bool(self.columns):
            raise ValueError("bars, beside and lines have columns, which are their metrics; the other kinds have none")
        if self.averages and self.kind != "lines":
            raise ValueError("averages of columns are drawn by figures of kind lines only")
        if self.adversaries and not self.rows:
            raise ValueError("adversaries: rows lists the recipes that are attacked")
        if self.attacks and not (self.attacks.series or self.rows):
            raise ValueError("attacks: set series, or rows and attacks, which follow each of them")
        return self

    @model_validator(mode="after")
    def _series_of_rows(self) -> Figure:
        if self.attacks and not self.attacks.series:
            series = dict.fromkeys(self.rows, self.attacks.attacks)
            object.__setattr__(self, "attacks", self.attacks.model_copy(update={"series": series}))
        return self

    def _measured(self) -> Iterable[tuple[str, str | None, bool]]:
        drawn = getattr(self, self.kind, None)
        if self.cross:
            return self.crossed.measured()
        if self.attacks:
            axes = (self.attacks.harm, *self.attacks.against)
            return [(axis.benchmark, axis.metric, not axis.if_measured) for axis in axes]
        if self.adversaries:
            return [(self.adversaries.shown.benchmark, self.adversaries.shown.metric, True)]
        source = getattr(drawn, "analysis", None) or getattr(drawn, "benchmark", None)
        return [*super()._measured(), *([(source, None, True)] if source else [])]

    @property
    def crossed(self) -> Cross:
        """Its cross. Raises ConfigurationError where the table that it names is not known."""
        if not isinstance(self.cross, Cross):
            raise ConfigurationError(f'"{self.cross}" stands for the cross of a table, which is not known here.')
        return self.cross

    def recipes(self) -> tuple[str, ...]:
        if self.cross:
            return unique((*self.crossed.defenses, *self.crossed.attacked()))
        swept = [self.lines.references, *self.lines.series.values()] if self.lines else []
        swept += [(recipe, *self.attacks.over(recipe)) for recipe in self.attacks.series] if self.attacks else []
        swept += [self.adversaries.over(recipe) for recipe in self.rows] if self.adversaries else []
        return unique((*super().recipes(), *(recipe for recipes in swept for recipe in recipes)))

    def trained(self) -> tuple[str, ...]:
        attacks = self.attacks
        if self.cross:
            return self.crossed.attacked()
        return unique(one for recipe in attacks.series for one in attacks.over(recipe)) if attacks else self.recipes()


class Against(OfRecipe, Measure):
    """`recipe` against `than` by one metric; what `margin` means depends on the condition, see `Condition`.

    worst_case, average: both stand for the worst of the attacks on them, or for their mean.
    """

    recipe: str
    than: str
    margin: float = Field(0.0, ge=0)


class Bound(OfRecipe, Measure):
    """A metric of one recipe, or of the attacks on it, against a fixed `value`."""

    recipe: str
    value: float


class Condition(Closed):
    """One part of a claim: exactly one of the five keys.

    better     the metric is better (in its own direction) with `recipe` than with `than`, by more than `margin`
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
        """Which of the five keys is set."""
        return next(key for key in _KINDS if getattr(self, key) is not None)

    @property
    def terms(self) -> Against | Bound:
        """The value of that key."""
        return getattr(self, self.kind)


class Claim(_OfStudy):
    """config/claims/: a statement of a paper as conditions, all of which must hold on every model of the study.

    The first condition is the headline: its effect, interval and p-value are those of the claim.

    about: the recipe that the statement speaks of, one of the headline's two; differences are shown as its value minus
    the other's, so that their sign agrees with the statement. Null: the headline's `recipe`. labels: names of recipes.
    """

    statement: str
    source: str
    about: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    conditions: tuple[Condition, ...] = Field(min_length=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _headline_is_measured(self) -> Claim:
        if self.conditions[0].if_measured:
            raise ValueError("the first condition is the claim's headline and cannot be if_measured")
        terms = self.conditions[0].terms
        compared = (terms.recipe, terms.than) if isinstance(terms, Against) else (terms.recipe,)
        if self.about not in (None, *compared):
            raise ValueError(f'it is about "{self.about}", which its headline does not compare: {", ".join(compared)}')
        return self

    def _measured(self) -> Iterable[tuple[str, str | None, bool]]:
        measured = [(c.terms.benchmark, c.terms.metric, not c.if_measured) for c in self.conditions]
        return measured + _utilities((c.terms.worst_case, not c.if_measured) for c in self.conditions)

    def recipes(self) -> tuple[str, ...]:
        named = [(t.case, (t.recipe, t.than) if isinstance(t, Against) else (t.recipe,)) for t in self._terms()]
        return unique((*(recipe for _, recipes in named for recipe in recipes), *_attacks(named)))

    def _terms(self) -> list[Against | Bound]:
        return [condition.terms for condition in self.conditions]


_KINDS = ("better", "not_worse", "equal", "at_least", "at_most")


def _attacks(named: Iterable[tuple[WorstCase | AverageCase | None, Iterable[str]]]) -> Iterable[str]:
    return (attack for case, recipes in named if case for recipe in recipes for attack in case.over(recipe))


def _utilities(worst: Iterable[tuple[WorstCase | None, bool]]) -> list[tuple[str, str | None, bool]]:
    return [(of.utility.benchmark, of.utility.metric, required) for of, required in worst if of is not None]
