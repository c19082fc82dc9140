"""Progress: what attacks have reached over seconds or trials; one row of panels per model.

Left, the hypervolume of (KL, refusal rate); right, the fewest refusals of a trial within a KL, which before the first
such trial are those of the model before the attack. Both can only improve over time. Lines are means over seeds, from
the start of the first seed to the end of the last; thin lines are single seeds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.figures.front import whole
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 5.2, 3.4  # of a panel, in inches

Steps = list[tuple[float, float]]
"""(seconds or trials, the value from there on), in order; the first is at 0."""


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.progress
    models, recipes = shown_rows(figure, results)
    canvas, panels = look.panels(len(models), 2, 2 * _WIDTH, _HEIGHT * len(models) + 0.4)
    used: list[Cell] = []
    handles: dict[str, Any] = {}
    for (volume, refusals), model in zip(panels, models, strict=True):
        for index, recipe in enumerate(recipes):
            cells = list(results.seeds(model, recipe, spec.analysis).values())
            if spec.over == "trials" and cells[0].metric("trials")["value"] is None:
                continue  # an attack without trials
            used += cells
            colour, style, _ = look.of_recipe(figure, recipe, index)
            reached_by = zip(*(reached(cell, spec.over, spec.kl_at_most) for cell in cells), strict=True)
            for panel, series in zip((volume, refusals), reached_by, strict=True):
                line = _draw(panel, series, {"color": colour, "linestyle": style})
                handles.setdefault(figure.label(recipe), line)
        _axes(volume, refusals, spec, model if len(models) > 1 else "")
    look.foot(canvas, _note(used, spec), handles.values(), list(handles), columns=len(handles))
    return canvas


def reached(cell: Cell, over: str, kl_at_most: float | None) -> tuple[Steps, Steps]:
    """Hypervolume, and the fewest refusals within the KL, in percent, over seconds or trials."""
    volume: Steps = [(0.0, 0.0)]
    least = 100 * cell.content["reported"]["base"]["refusal_rate"]
    refusals: Steps = [(0.0, least)]
    for count, row in enumerate((row for row in cell.rows if row["passed"] is not None), start=1):
        place = row["passed"] if over == "seconds" else float(count)
        volume.append((place, row["volume"]))
        if whole([row]) and (kl_at_most is None or row["divergence"] <= kl_at_most):
            least = min(least, 100 * row["rate"])
        refusals.append((place, least))
    return volume, refusals


def _draw(panel, series: Sequence[Steps], style: dict[str, str]) -> Any:
    """The mean over seeds, and every seed if there are several; returns the line of the mean."""
    if len(series) > 1:
        for steps in series:
            xs, ys = zip(*steps, strict=True)
            panel.step(xs, ys, where="post", color=style["color"], linewidth=0.6, alpha=0.5, clip_on=False)
    end = min(steps[-1][0] for steps in series)
    places = sorted({place for steps in series for place, _ in steps if place <= end})
    reached_by = [
        [steps[bisect_right(steps, place, key=lambda step: step[0]) - 1][1] for steps in series] for place in places
    ]
    means = [sum(values) / len(values) for values in reached_by]
    [line] = panel.step(places, means, where="post", linewidth=1.8, clip_on=False, zorder=3, **style)
    panel.plot(places[-1], means[-1], marker="o", markersize=4, color=style["color"], clip_on=False, zorder=3)
    return line


def _axes(volume, refusals, spec, model: str) -> None:
    within = "" if spec.kl_at_most is None else f" at KL ≤ {spec.kl_at_most:g} nats"
    title = f"{model}: " if model else ""
    volume.set_title(f"{title}hypervolume of log KL and refusals", fontsize=10)
    volume.set(ylabel="share of (four decades to 1 nat, 100 %)", ylim=(0, 1))
    refusals.set_title(f"{title}fewest refusals so far{within}", fontsize=10)
    refusals.set(ylabel="refused harmful prompts (%)", ylim=(0, 100))
    for panel in (volume, refusals):
        panel.set_xlabel("seconds, with the preparation" if spec.over == "seconds" else "trials")
        panel.set_xlim(left=0)


def _note(used: Sequence[Cell], spec) -> str:
    prompts = look.span({cell.metric("refusal_rate")["n"] for cell in used})
    lines = [f"n = {prompts} harmful prompts per trial, those that the attack is optimised on; {look.seeds(used)}"]
    several = len({cell.seed for cell in used}) > 1
    ends = "bold: means over seeds, until the first of them ends (dots); thin: single seeds"
    lines.append(ends if several else "dots: where the attack ends")
    if spec.over == "seconds":
        lines.append("seconds as measured, on different machines if the jobs ran on different ones")
    return "\n".join(lines)
