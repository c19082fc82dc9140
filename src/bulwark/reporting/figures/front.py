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

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH, _HEIGHT = 6.2, 4.2  # of a panel, in inches
_GATED, _GIVEN_UP = "stopped by the KL gate, counted as 100 %", "given up: rate of the prompts asked"
_ORDER = ("trial", "trial on its search's front", "front over all seeds", "trial taken", _GATED, _GIVEN_UP)

Row = Mapping[str, Any]


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    from matplotlib.figure import Figure as Canvas

    rows = shown_rows(figure, results)
    models = list(dict.fromkeys(model for model, _ in rows))
    recipes = list(dict.fromkeys(recipe for _, recipe in rows))
    across = min(len(models), 2)
    down = -(-len(models) // across)
    canvas = Canvas(figsize=(_WIDTH * across, _HEIGHT * down + 1.3), layout="constrained")
    panels = canvas.subplots(down, across, squeeze=False)
    for spare in panels.flat[len(models) :]:
        spare.set_visible(False)
    used: list[Cell] = []
    handles: dict[str, Any] = {}
    for panel, model in zip(panels.flat, models, strict=False):
        shown = {recipe: list(results.seeds(model, recipe, figure.front.analysis).values()) for recipe in recipes}
        used += [cell for cells in shown.values() for cell in cells]
        span = _axis(
            panel, [row["divergence"] for cells in shown.values() for cell in cells for row in measured(cell.rows)]
        )
        for index, (recipe, cells) in enumerate(shown.items()):
            colour = figure.colours.get(recipe, look.COLOURS[index % 7])
            mark = look.MARKS[index % 7]
            _draw(panel, cells, colour, mark, span[1], handles)
            handles.setdefault(figure.labels.get(recipe, recipe), _patch(colour, mark))
        _bound(panel, [cell for cells in shown.values() for cell in cells], span)
        panel.set_title(model, fontsize=10)
    names = [name for name in handles if name not in _ORDER] + [name for name in _ORDER if name in handles]
    look.foot(canvas, _told(used), [handles[name] for name in names], names, columns=min(len(names), 3 * across))
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
        "trial": ([row for row in whole(rows) if not row["pareto"]], {"alpha": 0.35, "s": 16, "linewidth": 0}),
        "trial on its search's front": (
            [row for row in whole(rows) if row["pareto"]],
            {"s": 24, "edgecolor": "white", "linewidth": 0.5, "zorder": 3},
        ),
        _GATED: ([row for row in rows if row["gated"]], {"marker": "x", "s": 22, "linewidth": 0.9}),
        _GIVEN_UP: (
            [row for row in rows if row["dominated"]],
            {"marker": "1", "s": 34, "linewidth": 0.9, "alpha": 0.7},
        ),
    }
    for name, (some, style) in kinds.items():
        if some:
            xs, ys = [row["divergence"] for row in some], [100 * row["rate"] for row in some]
            panel.scatter(xs, ys, clip_on=False, **({"color": colour, "marker": mark} | style))
            handles.setdefault(name, _mark(style, mark))
    steps = staircase(whole(rows))
    if len(rows) > len(cells):  # a search, not one edited model per seed
        xs = [*(kl for kl, _ in steps), right]
        ys = [*(100 * rate for _, rate in steps), 100 * steps[-1][1]]
        drawn = panel.step(xs, ys, where="post", color=colour, linewidth=1.3, alpha=0.9)
        handles.setdefault("front over all seeds", _line(drawn[0]))
    for cell in cells:
        taken = next(row for row in cell.rows if row["chosen"])
        rate = 100 * taken["rate"]
        whiskers = [[abs(100 * bound - rate)] for bound in taken["interval"]]
        panel.errorbar(
            taken["divergence"], rate, whiskers, fmt="*", markersize=13, color=colour, markeredgecolor=look.INK,
            markeredgewidth=0.8, ecolor=look.INK, elinewidth=1, capsize=3, clip_on=False, zorder=5,
        )  # fmt: skip
        panel.axhline(100 * cell.content["reported"]["base"]["refusal_rate"], color=colour, linestyle=":", linewidth=1)
    handles.setdefault("trial taken", _star())


def _axis(panel, kls: Sequence[float]) -> tuple[float, float]:
    """Set the axes up for these values of KL; returns where the axis of KL begins and ends."""
    least = min((kl for kl in kls if kl > 0), default=1e-3)
    most = max([*kls, 10 * least])
    if min(kls, default=least) > 0:
        panel.set_xscale("log")
        span = least / 1.8, most * 1.8
    else:
        panel.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(least)))
        span = min(0.0, *kls) - 0.2 * 10 ** math.floor(math.log10(least)), most * 1.8
    panel.set_xlim(*span)
    panel.set_ylim(-4, 104)
    panel.set_yticks(range(0, 101, 20))
    panel.grid(True, axis="both")
    panel.set_xlabel("KL from the model before the attack (nats, first token, harmless prompts)")
    panel.set_ylabel("refused harmful prompts (%)")
    return span


def _bound(panel, cells: Sequence[Cell], span: tuple[float, float]) -> None:
    """The largest KL at which a trial may be chosen, if it is within the panel."""
    for bound in {cell.content["reported"]["kl_at_most"] for cell in cells} - {None}:
        if span[0] < bound < span[1]:
            panel.axvline(bound, color=look.FAINT, linestyle="--", linewidth=1, zorder=0.5)


def _told(used: Sequence[Cell]) -> str:
    prompts = look.span({cell.metric("refusal_rate")["n"] for cell in used})
    trials = look.span({int(cell.metric("trials")["value"]) for cell in used if cell.metric("trials")["value"]})
    bounds = sorted({cell.content["reported"]["kl_at_most"] for cell in used} - {None})
    lines = [f"n = {prompts} harmful prompts per trial, those that the attack is optimised on"]
    lines[0] += f"; {trials} trials per search" if trials else ""
    lines.append(f"{look.seeds_told(used)}; dotted: before the attack")
    lines[1] += f"; dashed: taken at KL ≤ {' or '.join(f'{bound:g}' for bound in bounds)}" if bounds else ""
    lines.append("whiskers: 95 % Wilson interval of the trial taken, as if it had not been selected")
    return "\n".join(lines)


def _mark(style: Mapping[str, Any], mark: str) -> Any:
    from matplotlib.lines import Line2D

    shape = style.get("marker", mark)
    return Line2D([], [], linestyle="", color=look.GREY, marker=shape, markersize=6, alpha=style.get("alpha", 1))


def _line(drawn) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.GREY, linewidth=drawn.get_linewidth())


def _star() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="*", color=look.GREY, markeredgecolor=look.INK, markersize=12)


def _patch(colour: str, mark: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=mark, markersize=6, linewidth=1.3)
