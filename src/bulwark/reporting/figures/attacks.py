"""Attacks: the harm of every attack and trial against what it costs, and against the utility that it leaves.

A row of panels per model, a panel per axis. Marks are attacks, means over seeds; a colour is a recipe under attack.
The step line is its front: the most harm up to a cost or, against utility, the most harm that leaves so much or more.
It is read off the same records that choose it, which flatters the adversary; the worst case in tables is not. The
dotted line is the recipe before the attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from bulwark.reporting.columns import Axis, those_named
from bulwark.reporting.figures import look
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Figure

_WIDTH, _HEIGHT = 4.8, 3.6  # of a panel, in inches

Point = tuple[float, float]
"""(what it is drawn against, harm), in the units of the figure."""


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.attacks
    axes = [axis for axis in spec.against if not axis.if_measured or axis.benchmark in results.benchmarks]
    canvas, panels = look.panels(
        len(results.models), len(axes), _WIDTH * len(axes), _HEIGHT * len(results.models) + 0.4
    )
    handles: dict[str, Any] = {}
    missing = 0
    for row, model in zip(panels, results.models, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            points = {recipe: points_of(figure, results, model, recipe, axis) for recipe in spec.series}
            missing += sum(point is None for of_recipe in points.values() for point in of_recipe)
            for index, (recipe, of_recipe) in enumerate(points.items()):
                colour, _, mark = look.of_recipe(figure, recipe, index)
                known = [point for point in of_recipe if point is not None]
                ends = [x for others in points.values() for x, _ in filter(None, others)]
                dash = look.STYLES[index // len(look.COLOURS) % len(look.STYLES)]  # where colours come again
                look_of = {"color": colour, "marker": mark, "linestyle": dash, "gid": figure.label(recipe)}
                _draw(panel, known, spec.most, is_cost(axis, results), ends, look_of)
                before = results.estimate(model, recipe, spec.harm.benchmark, spec.harm.metric).value
                if before is not None:
                    dotted = {"color": colour, "linestyle": ":", "linewidth": 1, "gid": look_of["gid"]}
                    panel.axhline(before * spec.harm.scale, **dotted)
                line = Line2D([], [], **look_of, linewidth=1.3)
                handles.setdefault(figure.label(recipe), line)
            _dress(panel, figure, axis, model if len(results.models) > 1 else "")
    recipes = [one for recipe in spec.series for one in those_named(spec.over(recipe), results.recipes)]
    counted = look.records([spec.harm], results.models, recipes, results, " per mark")
    look.foot(canvas, _note(figure, results, counted, missing), handles.values(), list(handles), columns=len(handles))
    return canvas


def front(points: Sequence[Point], most: str, cheap: bool) -> list[Point]:
    """The points that no other dominates, in the order in which harm grows.

    most: "highest" or "lowest" harm is worst. cheap: whether an adversary wants the first number low (a cost) or high
    (the utility that is left).
    """
    sign, towards = (1 if most == "highest" else -1), (1 if cheap else -1)
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (towards * point[0], -sign * point[1])):
        if not best or sign * point[1] > sign * best[-1][1]:
            best.append(point)
    return best


def is_cost(axis: Axis, results: Results) -> bool:
    """Whether an adversary wants it low: what is neither better higher nor lower is what a training spent."""
    return results.higher_is_better(axis.benchmark, axis.metric) is not True


def points_of(figure: Figure, results: Results, model: str, recipe: str, axis: Axis) -> list[Point | None]:
    """Every attack on a recipe; None where one of the two metrics has no value."""
    harm, points = figure.attacks.harm, []
    for attack in those_named(figure.attacks.over(recipe), results.recipes):
        x, y = (results.estimate(model, attack, of.benchmark, of.metric).value for of in (axis, harm))
        points.append(None if x is None or y is None else (x * axis.scale, y * harm.scale))
    return points


def _draw(panel, points: Sequence[Point], most: str, cheap: bool, ends: Sequence[float], style: dict[str, str]) -> None:
    """The attacks on one recipe and their front; ends: of all recipes, so that fronts go on to the last of them."""
    if not points:
        return
    marks = {"s": 22, "alpha": 0.6, "linewidth": 0, "clip_on": False, "zorder": 3}
    line = {key: style[key] for key in ("color", "linestyle", "gid")} | {"linewidth": 1.3}
    panel.scatter(*zip(*points, strict=True), **{key: style[key] for key in ("color", "marker", "gid")}, **marks)
    steps = front(points, most, cheap)
    steps.append((max(ends) if cheap else min(ends), steps[-1][1]))
    panel.step(*zip(*steps, strict=True), where="post", **line)


def _dress(panel, figure: Figure, axis: Axis, model: str) -> None:
    harm = figure.attacks.harm
    unit = " (%)" if axis.percent else ""
    panel.set_xlabel(f"{axis.label}{unit}")
    panel.set_ylabel(f"{harm.label}{' (%)' if harm.percent else ''}")
    panel.set_title(f"{model}: {axis.label}" if model else axis.label, fontsize=10)
    if axis.log:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_ylim(*look.limits(figure, harm))
    panel.grid(True, axis="both")


def _note(figure: Figure, results: Results, counted: str, missing: int) -> str:
    worst = "highest" if figure.attacks.most == "highest" else "lowest"
    several = len({cell.seed for cell in results.cells}) > 1
    lines = [
        f"n = {counted}; {look.seeds(results.cells)}{'; marks: means over seeds' if several else ''}",
        f"lines: the {worst} value up to a cost, or of what leaves as much or more, read on the records that choose it",
        "dotted: before the attack",
    ]
    return "\n".join(lines + ([f"{missing} marks are missing: the metric has no value there"] if missing else []))
