"""Front: refusals that are left against KL, over all trials of attacks; one panel per model, a colour per recipe.

Dots are trials of all seeds, filled ones on the front of their search. The step line is the front of KL and refusal
rate over all seeds: no trial is to its lower left. A star is the chosen trial, with its 95 % Wilson interval; the
dotted line is the model before the attack. Trials that were stopped have marks of their own, because their rates are
not measured: one stopped by the KL gate counts as refusing everything, one stopped as certainly dominated has the rate
of the prompts that it answered. The axis of KL is logarithmic; if a KL is 0, it is linear below the smallest other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 6.2, 4.2  # of a panel, in inches
_TRIAL, _ON_FRONT = "trial", "trial on its search's front"
_FRONT, _CHOSEN = "front over all seeds", "trial taken"
_GATED, _GIVEN_UP = "stopped by the KL gate, counted as 100 %", "given up: rate of the prompts asked"
_ORDER = (_TRIAL, _ON_FRONT, _FRONT, _CHOSEN, _GATED, _GIVEN_UP)  # in the legend, after the recipes
_STYLES: dict[str, dict[str, Any]] = {
    _TRIAL: {"s": 16, "linewidth": 0, "alpha": 0.35},
    _ON_FRONT: {"s": 24, "linewidth": 0.5, "edgecolor": "white", "zorder": 3},
    _GATED: {"s": 22, "linewidth": 0.9, "marker": "x"},
    _GIVEN_UP: {"s": 34, "linewidth": 0.9, "marker": "1", "alpha": 0.7},
}

Row = Mapping[str, Any]


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    models, recipes = shown_rows(figure, results)
    across = min(len(models), 2)
    down = -(-len(models) // across)
    canvas, panels = look.panels(down, across, _WIDTH * across, _HEIGHT * down + 0.4, used=len(models))
    handles: dict[str, Any] = {}
    beyond: set[float] = set()
    for panel, model in zip(panels.flat, models, strict=False):
        shown = {recipe: list(results.seeds(model, recipe, figure.front.analysis).values()) for recipe in recipes}
        every = [cell for cells in shown.values() for cell in cells]
        left, right = _axes(panel, [row["divergence"] for cell in every for row in measured(cell.rows)])
        for index, (recipe, cells) in enumerate(shown.items()):
            colour, _, mark = look.of_recipe(figure, recipe, index)
            _draw(panel, cells, colour, mark, right, handles)
            handles.setdefault(figure.label(recipe), Line2D([], [], color=colour, marker=mark, linewidth=1.3))
        for bound in _bounds(every):
            if left < bound < right:
                panel.axvline(bound, color=look.FAINT, linestyle="--", linewidth=1, zorder=0.5)
            else:
                beyond.add(bound)
        panel.set_title(model, fontsize=10)
    names = [name for name in handles if name not in _ORDER] + [name for name in _ORDER if name in handles]
    handles_in_order = [handles[name] for name in names]
    look.foot(canvas, _note(results.cells, beyond), handles_in_order, names, columns=min(len(names), 3 * across))
    return canvas


def measured(rows: Iterable[Row]) -> list[Row]:
    """The trials with a refusal rate; of the candidates of an attack without a search only the chosen one has one."""
    return [row for row in rows if row["rate"] is not None]


def whole(rows: Iterable[Row]) -> list[Row]:
    """The trials that were not stopped."""
    return [row for row in measured(rows) if not row["gated"] and not row["dominated"]]


def staircase(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """The pairs (KL, refusal rate) that no other dominates, by KL."""
    steps: list[tuple[float, float]] = []
    for point in sorted((row["divergence"], row["rate"]) for row in rows):
        if not steps or point[1] < steps[-1][1]:
            steps.append(point)
    return steps


def _draw(panel, cells: Sequence[Cell], colour: str, mark: str, right: float, handles: dict[str, Any]) -> None:
    """One recipe: its trials, their front, and the chosen trial of every seed."""
    rows = [row for cell in cells for row in measured(cell.rows)]
    kinds = {
        _TRIAL: [row for row in whole(rows) if not row["pareto"]],
        _ON_FRONT: [row for row in whole(rows) if row["pareto"]],
        _GATED: [row for row in rows if row["gated"]],
        _GIVEN_UP: [row for row in rows if row["dominated"]],
    }
    for name, some in kinds.items():
        if some:
            style = {"marker": mark} | _STYLES[name]
            xs, ys = [row["divergence"] for row in some], [100 * row["rate"] for row in some]
            panel.scatter(xs, ys, clip_on=False, color=colour, **style)
            handle = Line2D([], [], linestyle="", color=look.GREY, marker=style["marker"], alpha=style.get("alpha", 1))
            handles.setdefault(name, handle)
    steps = staircase(whole(rows))
    if len(rows) > len(cells):  # a search, not one edited model per seed
        xs = [*(kl for kl, _ in steps), right]
        ys = [*(100 * rate for _, rate in steps), 100 * steps[-1][1]]
        panel.step(xs, ys, where="post", color=colour, linewidth=1.3, alpha=0.9)
        handles.setdefault(_FRONT, Line2D([], [], color=look.GREY, linewidth=1.3))
    for cell in cells:
        chosen = next(row for row in cell.rows if row["chosen"])
        rate = 100 * chosen["rate"]
        whiskers = [[abs(100 * bound - rate)] for bound in chosen["interval"]]
        star = {"fmt": "*", "markersize": 13, "color": colour, "markeredgecolor": look.INK, "markeredgewidth": 0.8}
        whisker = {"ecolor": look.INK, "elinewidth": 1, "capsize": 3}
        panel.errorbar(chosen["divergence"], rate, whiskers, clip_on=False, zorder=5, **star, **whisker)
        panel.axhline(100 * cell.content["reported"]["base"]["refusal_rate"], color=colour, linestyle=":", linewidth=1)
    star = {"marker": "*", "color": look.GREY, "markeredgecolor": look.INK, "markersize": 12}
    handles.setdefault(_CHOSEN, Line2D([], [], linestyle="", **star))


def _axes(panel, kls: Sequence[float]) -> tuple[float, float]:
    """Set the axes up for these values of KL; returns where the axis of KL begins and ends."""
    least = min((kl for kl in kls if kl > 0), default=1e-3)
    right = 1.8 * max([*kls, 10 * least])
    if min(kls, default=least) > 0:
        panel.set_xscale("log")
        left = least / 1.8
    else:
        linear = 10 ** math.floor(math.log10(least))
        panel.set_xscale("symlog", linthresh=linear)
        left = min(0.0, *kls) - 0.2 * linear
    panel.set(xlim=(left, right), ylim=(-4, 104), yticks=range(0, 101, 20), ylabel="refused harmful prompts (%)")
    panel.set_xlabel("KL from the model before the attack (nats, first token, harmless prompts)")
    panel.grid(True, axis="both")
    return left, right


def _bounds(cells: Iterable[Cell]) -> list[float]:
    """The largest KL at which a trial may be chosen, of every attack that has such a bound."""
    return sorted({cell.content["reported"]["kl_at_most"] for cell in cells} - {None})


def _note(cells: Sequence[Cell], beyond: set[float]) -> str:
    """beyond: the bounds of KL that are off a panel's axis, so that no line can show them."""
    prompts = look.span(cell.metric("refusal_rate")["n"] for cell in cells)
    trials = look.span(int(cell.metric("trials")["value"]) for cell in cells if cell.metric("trials")["value"])
    drawn, off = (" or ".join(f"{b:g}" for b in _bounds(cells) if (b in beyond) is out) for out in (False, True))
    return (
        f"n = {prompts} harmful prompts per trial, those that the attack is optimised on"
        + (f"; {trials} trials per search" if trials else "")
        + f"\n{look.seeds(cells)}; dotted: before the attack"
        + (f"; dashed: taken at KL ≤ {drawn}" if drawn else "")
        + (f"; taken at KL ≤ {off}, which is off the axis" if off else "")
        + "\nwhiskers: 95 % Wilson interval of the trial taken, as if it had not been selected"
    )
