"""Lines: metrics over a setting that is swept (strength, layer, onset …), one panel per metric, one line per series.

Marks are means over seeds, whiskers the 95 % interval over records, dots single seeds; recipes that do not depend on
the setting are horizontal lines. Averages of metrics have panels of their own, before the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bulwark.evaluation.statistics import Estimate, mean_of_independent
from bulwark.reporting.figures import look
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Average, Column, Figure
from bulwark.reporting.tables import direction, label_of, members, shown_columns
from bulwark.reporting.worst_cases import estimate_of

_WIDTH, _HEIGHT = 4.6, 3.5  # of a panel, in inches


@dataclass(frozen=True)
class _Shown:
    """What a panel shows: a column, or the average of several."""

    columns: tuple[Column, ...]
    average: Average | None = None

    @property
    def label(self) -> str:
        return self.columns[0].label if self.average is None else label_of(self.average, list(self.columns))

    def estimate(self, results: Results, model: str, recipe: str) -> Estimate:
        """Of a recipe; the data sets of an average are independent of one another."""
        each = [estimate_of(results, model, recipe, column) for column in self.columns]
        return each[0] if self.average is None else mean_of_independent(each)

    def published(self, printed: dict, model: str, recipe: str) -> float | None:
        """As a fraction; an average as it was printed."""
        own = self.columns[0].printed_as(model, recipe)
        key = own if self.average is None else (model, recipe, "average", self.average.label)
        return printed.get(key, (None, None))[0]


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas; `printed` holds the published numbers."""
    columns = shown_columns(figure.columns, results)
    averages = [(average, tuple(members(average, columns))) for average in figure.averages]
    shown = [_Shown(of, average) for average, of in averages if len(of) > 1]
    shown += [_Shown((column,)) for column in columns]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    places = [(model, one) for model in results.models for one in shown]
    down *= len(results.models)
    canvas, panels = look.panels(down, across, _WIDTH * across, _HEIGHT * down + 0.4, used=len(places))
    for panel, (model, one) in zip(panels.flat, places, strict=False):
        _draw(panel, figure, model, one, results, printed)
        title = f"{one.label}{direction(one.columns[0], results)}"
        panel.set_title(title if len(results.models) == 1 else f"{model}: {title}", fontsize=10)
    handle_of = dict(zip(*reversed(look.legend(panels.flat)), strict=True))
    names = [*figure.lines.series, *(name for name in handle_of if name not in figure.lines.series)]
    handles = [handle_of[name] for name in names]
    counted = look.records(columns, results.models, figure.recipes(), results, " per mark")
    means = "; marks: means over seeds" if len({cell.seed for cell in results.cells}) > 1 else ""
    note = f"n = {counted}; {look.seeds(results.cells)}{means}"
    note += f"; {look.WHISKERS}"
    estimates = [one.estimate(results, m, r) for m, one in places for r in _swept(figure)]
    if any(len(estimate.by_seed) > 1 for estimate in estimates):
        note += "; circles: single seeds"
    if any(one.published(printed, m, r) is not None for m, one in places for r in _swept(figure)):
        note += "; diamonds: published"
    for one in shown:
        if one.average is not None:
            of = ", ".join(column.label for column in one.columns)
            more = f" (published: of {len(one.average.of)})" if len(one.columns) < len(one.average.of) else ""
            note += f"; {one.label}: mean of {of}{more}"
    if figure.lines.references:
        note += "; horizontal lines: recipes that do not depend on it"
    look.foot(canvas, note, handles, names, columns=min(len(names), 2 * across))
    return canvas


def _swept(figure: Figure) -> list[str]:
    """The recipes on the lines."""
    return [recipe for swept in figure.lines.series.values() for recipe in swept]


def _draw(panel, figure: Figure, model: str, shown: _Shown, results: Results, printed: dict) -> None:
    column, scale = shown.columns[0], shown.columns[0].scale
    spec = figure.lines
    every = sorted({x for swept in spec.series.values() for x in swept.values()})
    beside = 0.02 * (every[-1] - every[0])  # single seeds are drawn to the right of their mean

    def estimate_at(recipe: str):
        return shown.estimate(results, model, recipe)

    for index, (label, swept) in enumerate(spec.series.items()):
        colour, mark = look.COLOURS[index % 7], look.MARKS[index % 7]
        points = sorted((x, recipe, estimate_at(recipe)) for recipe, x in swept.items())
        known = [(x, recipe, estimate) for x, recipe, estimate in points if estimate.value is not None]
        places, values = [x for x, *_ in known], [estimate.value * scale for *_, estimate in known]
        bounds = zip(*(estimate.interval or (estimate.value, estimate.value) for *_, estimate in known), strict=True)
        whiskers = [[abs(bound * scale - value) for bound, value in zip(side, values, strict=True)] for side in bounds]
        style = {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.5, "elinewidth": 0.9, "capsize": 2.5}
        panel.errorbar(places, values, whiskers, label=label, clip_on=False, zorder=3, **style)
        for x, recipe, estimate in known:
            if len(estimate.by_seed) > 1:
                seeds = [value * scale for value in estimate.by_seed.values() if value is not None]
                look_of_seeds = {"s": 10, "color": "white", "edgecolor": colour, "linewidth": 0.7, "zorder": 4}
                panel.scatter([x + beside] * len(seeds), seeds, clip_on=False, **look_of_seeds)
            value = shown.published(printed, model, recipe)
            if value is not None:
                panel.plot(
                    x, value * scale, "D", markersize=4.5, color=look.INK, markerfacecolor=look.PUBLISHED, zorder=5
                )
    for index, (recipe, label) in enumerate(spec.references.items()):
        value = estimate_at(recipe).value
        if value is not None:
            style = ("--", ":", "-.")[index % 3]
            panel.axhline(value * scale, color=look.INK, linestyle=style, linewidth=1.1, label=label)
    panel.set_xlabel(spec.x)
    panel.set_ylabel(look.unit(column))
    panel.set_ylim(*look.limits(figure, column))
    if len(every) <= 8:
        panel.set_xticks(every, [f"{x:g}" for x in every])
