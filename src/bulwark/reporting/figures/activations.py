"""Activations: histograms over the tokens of a prompt's parts, a panel per recipe (ASIDE, arXiv 2503.10566, Sec. 6.2).

By execution there are two: of the prompts whose probe the model has carried out, and of the others.

Bars are densities, so that parts with more tokens are not higher, and the curves kernel estimates of them. Each panel
has an axis of its own with 0 in the middle: every checkpoint has its own probe, whose scale means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results, ResultsError
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 4.6, 3.0  # of a panel, in inches


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.activations
    models, recipes = shown_rows(figure, results)
    executed = (True, False) if spec.by_execution else (None,)
    rows = list(product(models, recipes, executed))
    across = min(2, len(rows))
    down = -(-len(rows) // across)
    canvas, panels = look.panels(down, across, max(5.2, _WIDTH * across), _HEIGHT * down + 0.4, used=len(rows))
    for panel, (model, recipe, kind) in zip(panels.flat, rows, strict=False):
        # One seed: the others have the same prompts.
        cell = next(iter(results.seeds(model, recipe, spec.benchmark).values()))
        prompts = _executed(cell, kind)
        _draw(panel, figure, prompts)
        name = figure.label(recipe)
        if kind is not None:
            name += f", {'' if kind else 'not '}carried out (n = {len(prompts)})"
        panel.set_title(f"{model}, {name}" if len(models) > 1 else name, fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("activation of the instruction concept")
    handles, _ = panels.flat[0].get_legend_handles_labels()
    cells = [cell for cell in results.cells if cell.benchmark == spec.benchmark]
    counts = look.span(len(cell.rows) for cell in cells)
    first = min(cell.seed for cell in cells)
    note = (
        f"n = {counts} prompts; seed {first}; bars: densities; curves: kernel estimates; in the panels: shares above 0"
    )
    look.foot(canvas, note, handles, list(spec.parts.values()), columns=len(spec.parts))
    return canvas


def values_of(prompts: Sequence[Mapping[str, Any]], part: str) -> list[float]:
    """The activations of all tokens of a part of the prompts."""
    return [value for row in prompts for _, own, value in row["tokens"] if own == part]


def _executed(cell: Cell, kind: bool | None) -> list[Mapping[str, Any]]:
    """The prompts whose probe was carried out, or was not; None: all. Raises ResultsError if nobody knows."""
    if kind is None:
        return list(cell.rows)
    if any(row["executed"] is None for row in cell.rows):
        raise ResultsError(
            f"{cell.scores} does not say which probes were carried out, because the prompts were not answered. Set "
            f"`decoding` of the benchmark {cell.benchmark}, or take `by_execution` out of the figure."
        )
    return [row for row in cell.rows if row["executed"] == kind]


def _draw(panel, figure: Figure, prompts: Sequence[Mapping[str, Any]]) -> None:
    import numpy as np
    from scipy.stats import gaussian_kde

    spec = figure.activations
    found = {part: values_of(prompts, part) for part in spec.parts}
    reach = 1.05 * max((abs(value) for values in found.values() for value in values), default=1.0) or 1.0
    edges = np.linspace(-reach, reach, spec.bins + 1)
    places = np.linspace(-reach, reach, 400)
    for index, part in enumerate(spec.parts):
        values, colour = found[part], look.COLOURS[index % 7]
        share = f"{100 * sum(value > 0 for value in values) / len(values):.0f} % > 0" if values else "n = 0"
        *_, bars = panel.hist(values, edges, density=bool(values), color=colour, alpha=0.35, label=share)
        for bar in bars:
            bar.set_gid(spec.parts[part])
        if len(set(values)) > 1:
            style = {"color": colour, "linestyle": look.STYLES[index % 4], "linewidth": 1.3}
            panel.plot(places, gaussian_kde(values)(places), gid=spec.parts[part], **style)
    panel.axvline(0, color=look.INK, linewidth=0.8)
    panel.set(xlim=(-reach, reach), ylabel="density")
    panel.legend(fontsize=7.5, frameon=False, loc="upper left")
