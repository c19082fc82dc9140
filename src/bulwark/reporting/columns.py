"""What is shown of results: metrics, the worst case and the mean of attacks, and how recipes are named.

A name of a recipe may stand for several: `tar+relearn.*` for all trials of relearn that the study runs after tar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from bulwark.errors import ConfigurationError
from bulwark.settings import Closed

BASE = "base"
TRIALS = ".*"  # after a step: all its trials
STUDY = "study"  # for attacks: those of the study


class Measure(Closed):
    """A metric of a benchmark, with a value per record."""

    benchmark: str
    metric: str


class _OfAttacks(Closed):
    """Attacks on a recipe. attacks: what follows it, `relearn.*` standing for all trials of the study, and the word
    `study` for all attacks of the study. attacks_on: further ones by the recipe that they know.
    """

    attacks: tuple[str, ...] | Literal["study"] = ()
    attacks_on: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_attacks(self) -> _OfAttacks:
        if not (self.attacks or self.attacks_on):
            raise ValueError("a worst case or an average is over attacks, or over attacks_on, {recipe: [attack, …]}")
        return self

    def over(self, recipe: str) -> tuple[str, ...]:
        """The recipes that attack `recipe`. Raises ConfigurationError where the study is not known."""
        return attacks_on(recipe, (*listed(self.attacks), *self.attacks_on.get(recipe, ())))


class WorstCase(_OfAttacks):
    """In the place of a recipe, the attack on it that does most harm and costs little utility (evaluation.worst_case).

    utility, loss: at most this share of what the recipe has before the attack is lost. harm: which end of the metric
    shown is most harm; without a default, because the wrong end makes every model look as if no attack did harm.
    """

    utility: Measure
    loss: float = Field(0.05, ge=0, lt=1)
    harm: Literal["highest", "lowest"]


class AverageCase(_OfAttacks):
    """In the place of a recipe, the mean over attacks on it."""


class OfRecipe(Closed):
    """What is shown of a recipe: a metric, or that of the worst of the attacks on it, or of their mean."""

    worst_case: WorstCase | None = None
    average: AverageCase | None = None

    @model_validator(mode="after")
    def _one_case(self) -> OfRecipe:
        if self.worst_case and self.average:
            raise ValueError("worst_case and average exclude each other: make two columns, or two conditions")
        return self

    @property
    def case(self) -> WorstCase | AverageCase | None:
        """Of which attacks it is, if it is of attacks."""
        return self.worst_case or self.average


class Column(OfRecipe):
    """One metric of one benchmark or, under the key `analysis`, of an analysis.

    percent: shown times 100. out_of: shown on a scale of 0 … out_of instead, as for scores of a judge. digits: after
    the point; null means 1 for percent, 2 for a scale, 3 otherwise. worst_case, average: of the attacks on the
    row's recipe. better: which way the arrow points, where that is not the metric's own way: what was to be forgotten.
    """

    benchmark: str = Field(validation_alias=AliasChoices("benchmark", "analysis"))
    metric: str
    label: str
    percent: bool = True
    out_of: int | None = Field(None, ge=1)
    digits: int | None = Field(None, ge=0)
    if_measured: bool = False
    better: Literal["higher", "lower"] | None = None

    def plain(self) -> Column:
        """The same metric of a recipe itself; a worst case's label would not be of that."""
        if self.case is None:
            return self
        return self.model_copy(update={"worst_case": None, "average": None, "label": self.metric.replace("_", " ")})

    def printed_as(self, model: str, recipe: str) -> tuple[str, str, str, str]:
        """Under which key `results.read_published` has its published number; of attacks, "<metric> (<label>)"."""
        return model, recipe, self.benchmark, f"{self.metric} ({self.label})" if self.case else self.metric

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


class Attacks(Closed):
    """Harm against what the attacks cost and what utility they leave; a panel per axis, a point per attack and trial.

    harm: the metric, and which end of it is most harm. against: of the attacks (analyses, such as their FLOPs) or of
    what they leave (benchmarks). series: {recipe under attack: what follows it}, `relearn.*` standing for all trials
    and the word `study` for all attacks of the study. attacks: what follows each of the figure's rows, without series.
    """

    harm: Column
    most: Literal["highest", "lowest"]
    against: tuple[Axis, ...] = Field(min_length=1)
    series: dict[str, tuple[str, ...] | Literal["study"]] = Field(default_factory=dict)
    attacks: tuple[str, ...] | Literal["study"] = ()

    def over(self, recipe: str) -> tuple[str, ...]:
        """The recipes that attack `recipe`. Raises ConfigurationError where the study is not known."""
        return attacks_on(recipe, listed(self.series[recipe]))

    @model_validator(mode="after")
    def _metrics_themselves(self) -> Attacks:
        if any(column.case for column in (self.harm, *self.against)):
            raise ValueError("attacks are drawn one by one, so that harm and against have no worst_case or average")
        return self


class Adversaries(Closed):
    """One metric after every attack, a row per recipe (`rows`) and a column per attack, each field with its value.

    before: a column with the metric before the attacks.
    """

    shown: Column
    attacks: tuple[str, ...] | Literal["study"]
    before: bool = True

    def over(self, recipe: str) -> tuple[str, ...]:
        """The recipes that attack `recipe`. Raises ConfigurationError where the study is not known."""
        return attacks_on(recipe, listed(self.attacks))


class Lines(Closed):
    """Metrics over a setting that is swept, one panel per column.

    x: the setting's name and unit. series: one line each, {recipe: its value of the setting}. references: recipes drawn
    as horizontal lines, {recipe: label}.
    """

    x: str
    series: dict[str, dict[str, float]] = Field(min_length=1)
    references: dict[str, str] = Field(default_factory=dict)


class Trajectory(Closed):
    """How push X and state Y move while the recipes train; one row of panels per module, one column per recipe.

    normalised: divide both by the norms, so that modules can be compared. saddle: also Z = XY over X and Y in 3-D.
    smooth: marks and lines are running means over this many analysed steps of the same phase.
    """

    analysis: str
    modules: tuple[Literal["residual", "o_proj", "down_proj"], ...] = ("residual",)
    normalised: bool = False
    saddle: bool = True
    smooth: int = Field(1, ge=1)


class Cosine(Closed):
    """cos(g, v) over the optimizer steps of every recipe, with the step at which it has settled.

    smooth: lines are running means over this many steps, drawn beside the values; App. E smooths over 10.
    """

    analysis: str
    smooth: int = Field(10, ge=1)


class Pair(Closed):
    """Two scores of a detector, one point per row of the data. lines: thresholds of a rule, if there is one."""

    x: str
    y: str
    x_label: str
    y_label: str
    x_line: float | None = None
    y_line: float | None = None


class Scatter(Closed):
    """The scores of single rows, by data level; one panel per pair and recipe. levels: {level: label}, in order."""

    benchmark: str
    pairs: tuple[Pair, ...] = Field(min_length=1)
    levels: dict[str, str] = Field(min_length=1)


class Roc(Closed):
    """ROC curves of detectors, {score: label}, one panel per recipe and, with `levels`, {level: label}, per level."""

    benchmark: str
    scores: dict[str, str] = Field(min_length=1)
    levels: dict[str, str] = Field(default_factory=dict)


class Front(Closed):
    """The trials of attacks on refusals: KL against refusal rate, one panel per model."""

    analysis: str


class Progress(Closed):
    """What attacks on refusals have reached over seconds or trials: hypervolume, and the fewest refusals.

    kl_at_most: only trials within this KL count for the refusals, in nats; null for any.
    """

    analysis: str
    over: Literal["seconds", "trials"] = "seconds"
    kl_at_most: float | None = Field(None, gt=0)


class Residuals(Closed):
    """Harmful and harmless prompts in the residual stream: a row of panels per recipe, a panel per layer.

    layers: from 1; if empty, at most `most` of them, evenly spread.
    """

    analysis: str
    layers: tuple[int, ...] = ()
    most: int = Field(5, ge=1)


class Curve(Closed):
    """One panel: a number of an analysis' rows, of those that `where` selects: {field: value}.

    smooth: lines are running means over so many steps.
    """

    y: str
    label: str
    where: dict[str, str] = Field(default_factory=dict)
    x_label: str = "optimizer step"
    smooth: int = Field(1, ge=1)


class Curves(Closed):
    """Numbers that an analysis has of every step, a panel each, a line per recipe; `x` names the field of the steps."""

    analysis: str
    panels: tuple[Curve, ...] = Field(min_length=1)
    x: str = "step"


class LayerPanel(Closed):
    """One panel: a metric that a benchmark has of every layer, `<metric>_<number>`.

    limits: of the vertical axis; null fits it to the values. line: where a horizontal line is drawn, at chance, say.
    """

    metric: str
    label: str
    limits: tuple[float, float] | None = None
    line: float | None = None


class Layers(Closed):
    """What a benchmark has of every layer, a panel per metric and a line per recipe; x, y: what is on the axes."""

    benchmark: str
    panels: tuple[LayerPanel, ...] = Field(min_length=1)
    y: str
    x: str = "layer (0: embeddings)"


class Activations(Closed):
    """Histograms of the activations of tokens, a panel per recipe, two across, and a colour per part of the prompt.

    parts: {part: label}, in order. bins: of each panel's axis, which has 0 in its middle. by_execution: a panel of the
    prompts whose probe was carried out and one of the others, in the place of one of all.
    """

    benchmark: str
    parts: dict[str, str] = Field(min_length=1)
    bins: int = Field(30, ge=2)
    by_execution: bool = False


class Tokens(Closed):
    """The text of one prompt with its tokens' activations as colours, a panel per recipe.

    record: its number among those that the benchmark drew, from 0. underlined: the part that is marked, {part: label}.
    """

    benchmark: str
    record: int = Field(0, ge=0)
    underlined: dict[str, str] = Field(default_factory=dict)


def stands_for(name: str, recipe: str) -> bool:
    """Whether `recipe` is the named one or, where that holds `.*`, is one of these trials."""
    return name == recipe or (TRIALS in name and _trials(name).fullmatch(recipe) is not None)


@cache  # a plan asks some hundred thousand times
def _trials(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(TRIALS), r"\.[0-9]+"))


def those_named(names: Iterable[str], recipes: Sequence[str]) -> list[str]:
    """The recipes that the names stand for, trials by themselves, in the order of the names; all if there are none.

    recipes: all that there are. A name that stands for none of them is kept, so that whoever looks it up tells of it.
    """
    names = tuple(names)
    each = ([one for one in recipes if stands_for(name, one)] or [name] for name in names)
    return list(unique(one for of_name in each for one in of_name)) if names else list(recipes)


def filled(told: Any, attacks: list[str], key: str = "") -> Any:
    """Settings in which attacks, or the attacks of a series, are no longer the word `study`."""
    if isinstance(told, dict):
        return {
            name: attacks if value == STUDY and (name == "attacks" or key == "series")
            else filled(value, attacks, name)
            for name, value in told.items()
        }  # fmt: skip
    return [filled(one, attacks) for one in told] if isinstance(told, list | tuple) else told


def listed(attacks: tuple[str, ...] | str) -> tuple[str, ...]:
    """Attacks by name. Raises ConfigurationError for the word `study`, which only a configuration can resolve."""
    if isinstance(attacks, str):
        raise ConfigurationError(f'"{attacks}" stands for the attacks of a study, which is not known here. List them.')
    return attacks


def attacks_on(recipe: str, attacks: Iterable[str]) -> tuple[str, ...]:
    """The recipes that attack `recipe`, each attack being what follows it."""
    prefix = "" if recipe == BASE else f"{recipe}+"
    return unique(f"{prefix}{attack}" for attack in attacks)


def unique(names: Iterable[Any]) -> tuple[Any, ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(names))
