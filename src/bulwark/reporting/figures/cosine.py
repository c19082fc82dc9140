"""cos(g, v) over training, with the step at which it has settled (Guan et al., arXiv 2609.10142, Fig. 4, App. E).

One panel per model, one line per recipe: the mean over seeds, smoothed, with the range of the seeds; thin: unsmoothed.
A vertical line with a mark on the axis is the detected onset, the mean over the seeds that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    models, recipes = shown_rows(figure, results)
    canvas, panels = look.panels(len(models), 1, 6.6, 3.4 * len(models) + 0.4)
    for panel, model in zip(panels.flat, models, strict=True):
        for index, recipe in enumerate(recipes):
            cells = list(results.seeds(model, recipe, figure.cosine.analysis).values())
            colour, style, _ = look.of_recipe(figure, recipe, index)
            of_model = f", {model}" if len(models) > 1 else ""  # the onset is the model's own
            _draw(panel, cells, figure.label(recipe) + of_model, colour, style, figure.cosine.smooth)
        panel.axhline(0, color=look.FAINT, linewidth=0.8)
        panel.set(xlabel="optimizer step", ylabel=r"$\cos(\bar{g}, v)$")
        panel.set_title(model if len(models) > 1 else "", fontsize=10)
    note = f"{look.seeds(results.cells)}; lines: means over seeds"
    if len({cell.seed for cell in results.cells}) > 1:
        note += "; bands: range of the seeds"
    if any(cell.content["reported"]["onset"]["found"] for cell in results.cells):
        note += "; vertical lines: the step from which the series has settled (onset)"
    if figure.cosine.smooth > 1:
        note += f"; bold: running means over {figure.cosine.smooth} steps, thin: without"
    look.foot(canvas, note, *look.legend(panels.flat))
    return canvas


def _draw(panel, cells: Sequence[Cell], label: str, colour: str, style: str, width: int) -> None:
    series = []
    for cell in cells:
        steps, cosines = cell.content["reported"]["gradient_cosine"]
        known = [(step, value) for step, value in zip(steps, cosines, strict=True) if value is not None]
        apart = (known[-1][0] - known[0][0]) / max(1, len(known) - 1)  # more than 1 where only some steps are analysed
        smooth = look.running_mean([value for _, value in known], max(1, round(width / max(1.0, apart))))
        series.append({step: (value, mean) for (step, value), mean in zip(known, smooth, strict=True)})
    steps = sorted(set.intersection(*(set(values) for values in series)))
    raw, smooth = ([[values[step][kind] for values in series] for step in steps] for kind in (0, 1))
    onsets = [cell.content["reported"]["onset"] for cell in cells]
    detected = [onset["step"] for onset in onsets if onset["found"]]
    onset = sum(detected) / len(detected) if detected else None
    onset_label = "no onset" if onset is None else f"onset {onset:.0f}"
    if detected and len(cells) > 1:
        onset_label += f" in {len(detected)} of {len(cells)} seeds"
    line = {"color": colour, "linestyle": style}
    means = [sum(v) / len(v) for v in smooth]
    panel.plot(steps, means, **line, linewidth=1.6, label=f"{label} ({onset_label})", zorder=3)
    if width > 1:
        panel.plot(steps, [sum(v) / len(v) for v in raw], color=colour, linewidth=0.6, alpha=0.4)
    if len(cells) > 1:
        low, high = [min(v) for v in smooth], [max(v) for v in smooth]
        panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if onset is not None:
        panel.axvline(onset, **line, linewidth=0.9)
        on_axis = {"transform": panel.get_xaxis_transform(), "clip_on": False}
        panel.plot(onset, 0, marker="v", color=colour, markersize=7, **on_axis)
