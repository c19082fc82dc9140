"""ROC curves of detectors: share of trait rows flagged against share of false alarms, one curve per score and seed.

The area in the legend is the mean over seeds; the dotted line is a detector that guesses.
"""

from __future__ import annotations

from itertools import product
from math import nan
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.roc
    rows = list(product(*shown_rows(figure, results)))
    levels = spec.levels or {"": "all levels"}
    counts: list[int] = []
    canvas, panels = look.panels(len(rows), len(levels), 4.6 * len(levels), 5.2 * len(rows) + 0.3)
    for line, (model, recipe) in zip(panels, rows, strict=True):
        cells = list(results.seeds(model, recipe, spec.benchmark).values())
        for panel, (level, label) in zip(line, levels.items(), strict=True):
            panel.plot([0, 1], [0, 1], color=look.FAINT, linestyle=":", linewidth=1)
            for index, (score, name) in enumerate(spec.scores.items()):
                counts += _draw(panel, cells, level, score, name, index)
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            panel.set(xlabel="false positive rate (normal rows)", ylabel="true positive rate (trait rows)")
            panel.grid(True, axis="both")
            where = f"{model}, {figure.label(recipe)}: " if len(rows) > 1 else ""
            panel.set_title(f"{where}{label}", fontsize=10)
    look.foot(
        canvas, f"n = {look.span(counts) or 0} rows; {look.seeds(results.cells)}; in brackets: area under the curve"
    )
    return canvas


def _draw(panel, cells: list[Cell], level: str, score: str, name: str, index: int) -> list[int]:
    """The curve of every seed that has one; the legend says which detectors have none. Returns of how many rows."""
    curves, areas, counts = [], [], []
    for cell in cells:
        reported = cell.content["reported"]
        curve = (reported["roc_by_level"].get(level, {}) if level else reported["roc"]).get(score)
        if curve:
            curves.append(curve)
            metrics = cell.content["breakdowns"]["level"][level] if level else cell.content["metrics"]
            areas.append(metrics[f"auroc_{score}"]["value"])
            counts.append(metrics[f"auroc_{score}"]["n"])
    label = f"{name} ({sum(areas) / len(areas):.3f})" if areas else f"{name} (not measured)"
    line = {"color": look.COLOURS[index % 7], "linestyle": look.STYLES[index % 4], "linewidth": 1.6}
    for curve in curves or [[[nan, nan]]]:
        panel.plot(*zip(*curve, strict=True), label=label, alpha=0.9, clip_on=False, **line)
        label = None
    return counts
