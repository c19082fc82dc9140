"""Residuals: harmful and harmless prompts in the residual stream, a panel per layer, a row per recipe.

The model is the one that the recipe's last step attacked. Every layer has a plane of its own: horizontally the
difference of the class means, vertically the direction of most variance that is orthogonal to it. Both axes have the
same scale, and the panels of a layer and model have the same limits, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results, ResultsError
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_SIZE = 2.6  # of a panel, in inches
_CLASSES = {"harmless": (look.COLOURS[0], "o"), "harmful": (look.COLOURS[1], "^")}


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.residuals
    # One seed: the others have the same prompts.
    cells = [next(iter(results.seeds(*row, spec.analysis).values())) for row in product(*shown_rows(figure, results))]
    layers = {cell.model: spec.layers or _spread(cell, spec.most) for cell in cells}
    across = max(len(some) for some in layers.values())
    canvas, panels = look.panels(len(cells), across, max(6.0, _SIZE * across + 0.5), _SIZE * len(cells) + 0.5)
    counted = []
    for line, cell, after in zip(panels, cells, [*cells[1:], None], strict=True):
        name, own = figure.label(cell.recipe), layers[cell.model]
        counts = cell.content["reported"]["prompts"]
        shown = ", ".join(f"n = {counts[label]} {label}" for label in _CLASSES)
        counted.append((f"{cell.model}, {name}", shown, cell.seed))
        for spare in line[len(own) :]:
            spare.set_visible(False)
        alike = [other for other in cells if other.model == cell.model]
        for panel, layer in zip(line, own, strict=False):
            _draw(panel, cell, layer, _limits(alike, layer))
            if after is None or after.model != cell.model:
                panel.set_xlabel("along the difference\nof the means", fontsize=8)
        label = f"{cell.model}\n{name}" if len(layers) > 1 else name
        line[0].set_ylabel(f"{label}\n\nmost variance across it", fontsize=8)
    handles, names = panels.flat[0].get_legend_handles_labels()
    look.foot(canvas, _note(counted), handles, names, columns=len(names), marks=1.8)
    return canvas


def _draw(panel, cell: Cell, layer: int, limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
    rows = _at(cell, layer)
    for label, (colour, mark) in _CLASSES.items():
        xs, ys = ([row[axis] for row in rows if row["label"] == label] for axis in "xy")
        style = {"s": 9, "alpha": 0.4, "color": colour, "marker": mark, "linewidth": 0}
        panel.scatter(xs, ys, label=f"{label} prompts", rasterized=True, **style)
    panel.axvline(0, color=look.FAINT, linewidth=0.7, zorder=0.5)
    panel.grid(False)
    panel.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    panel.locator_params(nbins=4)
    panel.tick_params(labelsize=7)
    [apart] = [at["silhouette"] for at in cell.content["reported"]["geometry"] if at["layer"] == layer]
    panel.set_title(f"layer {layer}, silhouette {apart:.2f}", fontsize=8.5)


def _at(cell: Cell, layer: int) -> list[dict[str, Any]]:
    """The prompts at a layer. Raises ResultsError if there are none."""
    rows = [row for row in cell.rows if row["layer"] == layer]
    if not rows:
        count = len(cell.content["reported"]["geometry"])
        raise ResultsError(f"{cell.scores} has no layer {layer}: {cell.model} has the layers 1 to {count}.")
    return rows


def _spread(cell: Cell, most: int) -> tuple[int, ...]:
    """At most so many layers, evenly spread, the last included."""
    layers = [at["layer"] for at in cell.content["reported"]["geometry"]]
    count = min(most, len(layers))
    return tuple(layers[round((place + 1) * len(layers) / count) - 1] for place in range(count))


def _limits(cells: Sequence[Cell], layer: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of both axes, equally wide, around the prompts of all cells."""
    rows = [row for cell in cells for row in _at(cell, layer)]
    spans = [look.padded([row[axis] for row in rows]) for axis in "xy"]
    half = max(high - low for low, high in spans) / 2
    return tuple(((low + high) / 2 - half, (low + high) / 2 + half) for low, high in spans)


def _note(counted: Sequence[tuple[str, str, int]]) -> str:
    """The number of prompts and the seed; once if all rows have the same."""
    if len({(count, seed) for _, count, seed in counted}) == 1:
        _, count, seed = counted[0]
        return f"{count}; seed {seed}; each layer has a plane of its own"
    return "\n".join(f"{name}, seed {seed}: {count}" for name, count, seed in counted)
