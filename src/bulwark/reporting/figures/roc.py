"""ROC curves of detectors: share of trait rows flagged against share of false alarms, one curve per score and seed.

The area in the legend is the mean over seeds; the dotted line is a detector that guesses.
"""

from __future__ import annotations

from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    from matplotlib.figure import Figure as Canvas

    spec = figure.roc
    lines = shown_rows(figure, results)
    levels = spec.levels or {"": "all levels"}
    canvas = Canvas(figsize=(4.6 * len(levels), 5.2 * len(lines) + 0.3), layout="constrained")
    panels = canvas.subplots(len(lines), len(levels), squeeze=False)
    used: list[Cell] = []
    counts = []
    for line, (model, recipe) in enumerate(lines):
        cells = list(results.seeds(model, recipe, spec.benchmark).values())
        used += cells
        counts += [cell.content["n"] for cell in cells]
        for panel, (level, label) in zip(panels[line], levels.items(), strict=True):
            panel.plot([0, 1], [0, 1], color=look.FAINT, linestyle=":", linewidth=1)
            for index, (score, name) in enumerate(spec.scores.items()):
                _draw(panel, cells, level, score, name, index)
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            panel.grid(True, axis="both")
            panel.set_xlabel("false positive rate (normal rows)")
            panel.set_ylabel("true positive rate (trait rows)")
            where = f"{model}, {figure.labels.get(recipe, recipe)}: " if len(lines) > 1 else ""
            panel.set_title(f"{where}{label}", fontsize=10)
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    look.foot(canvas, f"n = {span} rows; {look.seeds_told(used)}; in brackets: area under the curve")
    return canvas


def _draw(panel, cells: list[Cell], level: str, score: str, name: str, index: int) -> None:
    """The curve of every seed that has one; the legend says which detectors have none."""
    colour, style = look.COLOURS[index % 7], look.STYLES[index % 4]
    curves, areas = [], []
    for cell in cells:
        reported = cell.content["reported"]
        curve = (reported["roc_by_level"].get(level, {}) if level else reported["roc"]).get(score)
        if curve:
            curves.append(curve)
            metrics = cell.content["breakdowns"]["level"][level] if level else cell.content["metrics"]
            areas.append(metrics[f"auroc_{score}"]["value"])
    label = f"{name} ({sum(areas) / len(areas):.3f})" if areas else f"{name} (not measured)"
    for curve in curves or [[[None, None]]]:
        xs, ys = zip(*curve, strict=True)
        panel.plot(xs, ys, color=colour, linestyle=style, linewidth=1.6, label=label, alpha=0.9, clip_on=False)
        label = None
