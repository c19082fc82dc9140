"""Beside: several metrics of one recipe next to each other, a group of bars per model, a panel per recipe.

The paper's arrangement of the embedding intervention (ASIDE, arXiv 2503.10566, Sec. 6.3): reference and intervention
side by side. Bars are means over seeds, whiskers the 95 % interval over records, diamonds the published numbers.
"""

from __future__ import annotations

from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_columns, shown_rows

_GROUP = 0.8  # of the width of a group of bars; the distance between groups is 1
_HATCHES = ("", "//", "xx", "..")


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas; `printed` holds the published numbers."""
    columns = shown_columns(figure.columns, results)
    models, recipes = shown_rows(figure, results)
    width = max(4.4, 1.6 + len(models) * (0.4 + 0.4 * len(columns)))
    canvas, panels = look.panels(1, len(recipes), max(5.2, width * len(recipes)), 3.8)
    published = False
    for panel, recipe in zip(panels.flat, recipes, strict=True):
        for index, column in enumerate(columns):
            style = {"color": look.COLOURS[index % 7], "hatch": _HATCHES[index % 4], "edgecolor": "white"}
            bar, label = _GROUP / len(columns), column.label  # in the legend once, by the first bar that there is
            for group, model in enumerate(models):
                place = group + (index - (len(columns) - 1) / 2) * bar
                estimate = results.estimate(model, recipe, column.benchmark, column.metric)
                if estimate.value is None:
                    panel.annotate("n = 0", (place, 0), rotation=90, ha="center", va="bottom", fontsize=8)
                    continue
                height = estimate.value * column.scale
                panel.bar(place, height, 0.92 * bar, label=label, linewidth=0.5, **style)
                label = None
                top = height
                if estimate.interval is not None:
                    bounds = [[abs(estimate.value - bound) * column.scale] for bound in estimate.interval]
                    panel.errorbar(place, height, bounds, fmt="none", ecolor=look.INK, elinewidth=1, capsize=2.5)
                    top = estimate.interval[1] * column.scale
                text = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5, "color": look.INK}
                panel.annotate(f"{height:.{column.places}f}", (place, top), (0, 3), **text)
                value, _ = printed.get(column.printed_as(model, recipe), (None, None))
                if value is not None:
                    diamond = {"markersize": 4.5, "color": look.INK, "markerfacecolor": look.PUBLISHED, "zorder": 5}
                    panel.plot(place, value * column.scale, "D", **diamond)
                    published = True
        panel.set_xticks(range(len(models)), models, rotation=20 if len(models) > 3 else 0)
        panel.set_xlim(-0.6, len(models) - 0.4)
        panel.tick_params(axis="x", length=0)
        panel.set_ylabel(look.unit(columns[0]))
        panel.set_title(figure.label(recipe) if len(recipes) > 1 else "", fontsize=10)
    # One scale for all, from 0 to what is needed: a small effect is to be seen, and panels compare.
    highest = max(panel.get_ylim()[1] for panel in panels.flat)
    for panel in panels.flat:
        panel.set_ylim(min(0.0, *(one.get_ylim()[0] for one in panels.flat)), 1.06 * highest)
    counted = look.records(columns, models, recipes, results)
    note = f"n = {counted}; {look.seeds(results.cells)}; {look.WHISKERS}" + (
        "; diamonds: published" if published else ""
    )
    handle_of = dict(zip(*reversed(look.legend(panels.flat)), strict=True))
    names = [column.label for column in columns if column.label in handle_of]
    look.foot(canvas, note, [handle_of[name] for name in names], names, columns=min(3, len(columns)))
    return canvas
