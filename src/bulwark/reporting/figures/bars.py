"""Bars: one panel per metric, one group of bars per model, one bar per recipe.

Bars are means over seeds, whiskers the 95 % interval over records (Wilson's is not symmetric), dots the single seeds,
diamonds the published numbers.
"""

from __future__ import annotations

from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Column, Figure
from bulwark.reporting.tables import direction, shown_columns, shown_rows
from bulwark.reporting.worst_cases import estimate_of

_WIDTH = 0.8  # of a group of bars; the distance between groups is 1
_LEAST = 5.2  # inches across a figure, so that note and legend need few lines
_FLAT = 0.01  # of the axis: a lower bar is marked at the bottom, with its value
_PER_PANEL = 6.3  # inches, at most
_WIDEST = 14  # inches across a figure; further panels come below


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas; `printed` holds the published numbers."""
    columns = shown_columns(figure.columns, results)
    models, recipes = shown_rows(figure, results)
    width = min(_PER_PANEL, 1.9 + len(models) * (0.35 + 0.27 * len(recipes)))
    across = min(len(columns), max(1, int(_WIDEST / width)))
    down = -(-len(columns) // across)
    across = -(-len(columns) // down)  # rows of equal length, as far as they can be
    canvas, panels = look.panels(down, across, max(_LEAST, width * across), 3.4 * down + 0.4, used=len(columns))
    drawn: set[str] = set()
    for panel, column in zip(panels.flat, columns, strict=False):
        drawn |= _draw(panel, figure, column, models, recipes, results, printed)
    handle_of = dict(zip(*reversed(look.legend(panels.flat)), strict=True))
    # The recipes in order, then the marks, which `sorted` leaves in theirs.
    labels = [figure.label(recipe) for recipe in recipes]
    names = sorted(handle_of, key=lambda name: labels.index(name) if name in labels else len(labels))
    handles = [handle_of[name] for name in names]
    counted = look.records(columns, models, recipes, results)
    look.foot(canvas, _note(results, counted, drawn), handles, names, columns=min(len(names), max(3, 4 * across)))
    return canvas


def _note(results: Results, counted: str, drawn: set[str]) -> str:
    """Of how many records and seeds the bars are, and the marks that were drawn."""
    several = len({cell.seed for cell in results.cells}) > 1
    parts = [f"n = {counted}; {look.seeds(results.cells)}", *(["bars: means over seeds"] if several else [])]
    marks = {"whiskers": look.WHISKERS, "circles": "circles: single seeds", "diamonds": "diamonds: published"}
    parts += [text for mark, text in marks.items() if mark in drawn]
    if "errors" in drawn:
        parts[-1] += " ± standard error"
    return "; ".join(parts)


def _draw(panel, figure: Figure, column: Column, models, recipes, results: Results, printed) -> set[str]:
    """One panel: the bars of every recipe over all models. Returns which marks there are."""
    scale = column.scale
    drawn: set[str] = set()
    bars_drawn: list[tuple[float, float, float, str]] = []
    width = _WIDTH / len(recipes)
    seeds_name, published_name = "single seeds", "published"  # of the first mark; the others have none in the legend
    for index, recipe in enumerate(recipes):
        style = {
            "color": figure.colours.get(recipe, f"C{index}"),
            "hatch": figure.hatches.get(recipe),
            "label": figure.label(recipe),
        }
        for group, model in enumerate(models):
            estimate = estimate_of(results, model, recipe, column)
            place = group + (index - (len(recipes) - 1) / 2) * width
            if estimate.value is None:
                nothing = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 8}
                why = "none eligible" if column.worst_case else "no attacks" if column.average else "n = 0"
                panel.annotate(why, (place, 0), (0, 4), textcoords="offset points", **nothing)
                continue
            height = estimate.value * scale
            panel.bar(place, height, 0.92 * width, edgecolor="white", linewidth=0.5, **style)
            bars_drawn.append((place, height, max(height, scale * (estimate.interval or (0, 0))[1]), style["color"]))
            style["label"] = None
            if estimate.interval is not None:
                whiskers = [[abs(estimate.value - bound) * scale] for bound in estimate.interval]
                lines = {"ecolor": look.INK, "elinewidth": 1, "capsize": 2.5, "clip_on": False}
                panel.errorbar(place, height, whiskers, fmt="none", **lines)
                drawn.add("whiskers")
            if len(estimate.by_seed) > 1:
                values = [value * scale for value in estimate.by_seed.values()]
                dots = {"s": 13, "color": "white", "edgecolor": look.INK, "linewidth": 0.7, "zorder": 4}
                dots["clip_on"] = False  # dots at 0 or 100 % are drawn whole
                panel.scatter([place + 0.22 * width] * len(values), values, label=seeds_name, **dots)
                seeds_name = None
                drawn.add("circles")
            value, stderr = printed.get(column.printed_as(model, recipe), (None, None))
            if value is not None:
                error = None if stderr is None else stderr * scale
                diamond = {"fmt": "D", "markersize": 4, "color": look.INK, "markerfacecolor": look.PUBLISHED}
                diamond |= {"elinewidth": 0.8, "zorder": 5, "label": published_name}
                panel.errorbar(place - 0.22 * width, value * scale, error, **diamond)
                published_name = None
                drawn |= {"diamonds"} if error is None else {"diamonds", "errors"}
    panel.set_title(f"{column.label}{direction(column, results)}", fontsize=10)
    panel.set_ylabel(look.unit(column))
    panel.set_xticks(range(len(models)), models, rotation=20 if len(models) > 3 else 0)
    panel.set_xlim(-0.55, len(models) - 0.45)
    panel.tick_params(axis="x", length=0)
    low, high = look.limits(figure, column)
    panel.set_ylim(min(0, panel.get_ylim()[0]) if low is None else low, high)
    low, high = panel.get_ylim()
    for place, height, top, colour in bars_drawn:
        if abs(height) < _FLAT * (high - low):  # too flat to be seen, but not missing
            ends = [place - 0.46 * width, place + 0.46 * width]
            panel.plot(ends, [0, 0], color=colour, linewidth=4, clip_on=False, solid_capstyle="butt")
            text = {"ha": "center", "va": "bottom", "fontsize": 7, "color": look.INK}
            panel.annotate(f"{height:.3g}", (place, top), (0, 4), textcoords="offset points", **text)
    return drawn
