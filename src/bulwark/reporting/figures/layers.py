"""Layers: what a benchmark has of every layer of a model, one row of panels per model, one line per recipe.

Lines are means over seeds, bands their 95 % interval over records.
"""

from __future__ import annotations

import re
from typing import Any

from bulwark.reporting.columns import LayerPanel
from bulwark.reporting.figures import look
from bulwark.reporting.results import Results, ResultsError
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 4.4, 3.3  # of a panel, in inches
_MARKED = 20  # layers up to which each has a mark
_ROOM = 0.03  # beyond both limits of an axis, so that a line there is drawn whole


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas. Raises ResultsError for a metric that the benchmark does not have of layers."""
    spec = figure.layers
    models, recipes = shown_rows(figure, results)
    across, down = len(spec.panels), len(models)
    canvas, panels = look.panels(down, across, max(5.2, _WIDTH * across), _HEIGHT * down + 0.4)
    handles: dict[str, Any] = {}
    counts: list[int] = []
    for line, model in zip(panels, models, strict=True):
        for panel, shown in zip(line, spec.panels, strict=True):
            if shown.line is not None:
                panel.axhline(shown.line, color=look.FAINT, linestyle=":", linewidth=1.2)
            for index, recipe in enumerate(recipes):
                handle, seen = _draw(panel, figure, results, model, recipe, index, shown)
                handles.setdefault(figure.label(recipe), handle)
                counts += seen
            panel.set(xlabel=spec.x, ylabel=spec.y)
            panel.set_title(f"{model}: {shown.label}" if down > 1 else shown.label, fontsize=10)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(True, axis="both")
            if shown.limits is not None:
                low, high = shown.limits
                panel.set_ylim(low - _ROOM * (high - low), high + _ROOM * (high - low))
    several = len({cell.seed for cell in results.cells}) > 1
    note = f"n = {look.span(counts)} records; {look.seeds(results.cells)}"
    note += "; lines: means over seeds" if several else ""
    note += "; bands: 95 % interval over records"
    if any(shown.line is not None for shown in spec.panels):
        note += "; dotted: chance"
    look.foot(canvas, note, handles.values(), list(handles), columns=min(4, len(handles)))
    return canvas


def layers_of(results: Results, model: str, recipe: str, benchmark: str, metric: str) -> list[int]:
    """The layers that a metric is known of, in order. Raises ResultsError if there is none."""
    cell = next(iter(results.seeds(model, recipe, benchmark).values()))
    names = (re.fullmatch(rf"{re.escape(metric)}_(\d+)", name) for name in cell.content["metrics"])
    layers = sorted(int(name[1]) for name in names if name)
    if not layers:
        raise ResultsError(
            f'{cell.scores} has no metric "{metric}_<layer>". Name one that the benchmark has of layers.'
        )
    return layers


def _draw(panel, figure: Figure, results: Results, model: str, recipe: str, index: int, shown: LayerPanel):
    """One line with its band. Returns it, and of how many records its points are."""
    benchmark = figure.layers.benchmark
    layers = layers_of(results, model, recipe, benchmark, shown.metric)
    estimates = {layer: results.estimate(model, recipe, benchmark, f"{shown.metric}_{layer}") for layer in layers}
    known = {layer: estimate for layer, estimate in estimates.items() if estimate.value is not None}
    colour, style, mark = look.of_recipe(figure, recipe, index)
    marks = {"marker": mark, "markersize": 4} if len(layers) <= _MARKED else {}
    line = {"color": colour, "linestyle": style, "linewidth": 1.6, "zorder": 3, "clip_on": False, **marks}
    (handle,) = panel.plot(list(known), [estimate.value for estimate in known.values()], **line)
    banded = {layer: estimate.interval for layer, estimate in known.items() if estimate.interval}
    if banded:
        low, high = zip(*banded.values(), strict=True)
        panel.fill_between(list(banded), low, high, color=colour, alpha=0.15, linewidth=0)
    return handle, [estimate.n for estimate in known.values()]
