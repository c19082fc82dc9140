"""Curves: what an analysis has of every step of a training or an attack, such as loss and entropy.

One row of panels per model, one panel per number, one line per recipe: the mean over seeds, with their range.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bulwark.reporting.columns import Curve
from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 4.2, 3.3  # of a panel, in inches


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.curves
    models, recipes = shown_rows(figure, results)
    across, down = len(spec.panels), len(models)
    canvas, panels = look.panels(down, across, max(5.2, _WIDTH * across), _HEIGHT * down + 0.4)
    handles: dict[str, Any] = {}
    nothing = []
    for line, model in zip(panels, models, strict=True):
        for panel, curve in zip(line, spec.panels, strict=True):
            for index, recipe in enumerate(recipes):
                cells = results.seeds(model, recipe, spec.analysis).values()
                series = [_smoothed(_values(cell, curve, spec.x), curve.smooth) for cell in cells]
                colour, style, _ = look.of_recipe(figure, recipe, index)
                if not all(series):
                    nothing.append(f"{figure.label(recipe)} ({curve.label})")
                    continue
                handle = _line(panel, series, {"color": colour, "linestyle": style})
                handles.setdefault(figure.label(recipe), handle)
            panel.set(xlabel=curve.x_label)
            panel.set_title(f"{model}: {curve.label}" if down > 1 else curve.label, fontsize=10)
            panel.grid(True, axis="both")
    note = look.seeds(results.cells)
    if len({cell.seed for cell in results.cells}) > 1:
        note += "; lines: means over seeds; bands: range of the seeds"
    note += "".join(f"; {c.label}: running means over {c.smooth} steps" for c in spec.panels if c.smooth > 1)
    if nothing:
        note += f"; without a value: {', '.join(dict.fromkeys(nothing))}"
    look.foot(canvas, note, handles.values(), list(handles), columns=min(3, max(1, len(handles))))
    return canvas


def _values(cell: Cell, curve: Curve, x: str) -> dict[float, float]:
    """{step: the mean of the rows there that are selected and have a value}, by step."""
    at: dict[float, list[float]] = defaultdict(list)
    for row in cell.rows:
        if all(row.get(key) == value for key, value in curve.where.items()) and row.get(curve.y) is not None:
            at[row[x]].append(row[curve.y])
    return {step: sum(values) / len(values) for step, values in sorted(at.items())}


def _smoothed(values: dict[float, float], width: int) -> dict[float, float]:
    return dict(zip(values, look.running_mean(list(values.values()), width), strict=True))


def _line(panel, series: list[dict[float, float]], style: dict[str, str]) -> Any:
    """The mean over seeds at the steps that all of them have, and the range; returns the line."""
    steps = sorted(set.intersection(*map(set, series)))
    at = [[values[step] for values in series] for step in steps]
    marks = {"marker": "o", "markersize": 3} if len(steps) <= 30 else {}
    (line,) = panel.plot(steps, [sum(values) / len(values) for values in at], linewidth=1.5, **marks, **style)
    if len(series) > 1:
        low, high = [min(values) for values in at], [max(values) for values in at]
        panel.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return line
