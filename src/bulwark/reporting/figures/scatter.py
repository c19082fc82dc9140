"""Scatter: two scores of a detector for every row of a data set, by the row's level, as the authors plot their records.

Colours and marks distinguish the levels. Dashed lines are the thresholds of the rule on the two scores.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

from bulwark.reporting.columns import Pair
from bulwark.reporting.figures import look
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.scatter
    rows = list(product(*shown_rows(figure, results)))
    canvas, panels = look.panels(len(rows), len(spec.pairs), 4.6 * len(spec.pairs), 3.9 * len(rows) + 0.4)
    notes = []
    thresholds = False
    for line, (model, recipe) in zip(panels, rows, strict=True):
        # One seed: the others have the same rows.
        seed, cell = next(iter(results.seeds(model, recipe, spec.benchmark).items()))
        name = f"{model}, {figure.label(recipe)}"
        for pair, panel in zip(spec.pairs, line, strict=True):
            left_out = _draw(panel, pair, cell.rows, spec.levels)
            thresholds = thresholds or _dashed(panel, pair)
            panel.set_title(name if len(rows) > 1 else "", fontsize=10)
        counts = Counter(row["level"] for row in cell.rows)
        shown = ", ".join(f"{label} n = {counts[level]}" for level, label in spec.levels.items())
        notes.append(f"{name}, seed {seed}: {shown}" + (f" ({left_out} without a score)" if left_out else ""))
    if thresholds:
        notes.append("dashed: thresholds of the rule")
    handles, names = panels[0, 0].get_legend_handles_labels()
    look.foot(canvas, "\n".join(notes), handles, names, columns=len(names), marks=1.8)
    return canvas


def _draw(panel, pair: Pair, rows: list[dict], levels: dict[str, str]) -> int:
    """Draw the rows that have both scores; returns how many rows of the shown levels lack one."""
    shown = [row for row in rows if row["level"] in levels]
    known = [row for row in shown if row[pair.x] is not None and row[pair.y] is not None]
    for index, (level, label) in enumerate(levels.items()):
        at = [row for row in known if row["level"] == level]
        style = {"s": 11, "alpha": 0.45, "color": look.COLOURS[index % 7], "marker": look.MARKS[index % 7]}
        xs, ys = ([row[score] for row in at] for score in (pair.x, pair.y))
        panel.scatter(xs, ys, linewidth=0, label=label, rasterized=True, **style)
    if known:
        panel.set(xlim=look.padded(row[pair.x] for row in known), ylim=look.padded(row[pair.y] for row in known))
    else:
        panel.text(0.5, 0.5, "n = 0", transform=panel.transAxes, ha="center")
    panel.grid(True, axis="both")
    panel.set(xlabel=pair.x_label, ylabel=pair.y_label)
    return len(shown) - len(known)


def _dashed(panel, pair: Pair) -> bool:
    """Draw the thresholds that lie on the axes; returns whether there are any."""
    lines = ((pair.x_line, panel.axvline, panel.get_xlim()), (pair.y_line, panel.axhline, panel.get_ylim()))
    on_axis = [(value, across) for value, across, (low, high) in lines if value is not None and low <= value <= high]
    for value, across in on_axis:
        across(value, color=look.INK, linestyle="--", linewidth=1.0, zorder=0.5)
    return bool(on_axis)
