"""Trajectories: how the push X of training along a trait vector and the state Y move.

Guan et al., arXiv 2609.10142, Fig. 2 (residual stream) and 3 (W_o and W_down).

X = -ḡ·v̂: to the right of 0, training pushes towards the vector. Y: projection of the module's output, or of the
residual stream, on it. Z = XY is drawn as contours, or as a saddle surface over X and Y. Lines and marks are means over
seeds, thin lines single seeds; a ring marks the beginning. Steps have different rows, so single values are noisy: with
`smooth` all are running means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_OF_WEIGHTS = r"\|\bar{\delta}\|", r"\|W\|\|\bar{a}\|"
# Module: its name, and what its X and Y are divided by.
_MODULES = {
    "residual": ("residual stream", r"\|\bar{g}\|", r"\|\bar{h}\|"),
    "o_proj": (r"$W_o$", *_OF_WEIGHTS),
    "down_proj": (r"$W_{down}$", *_OF_WEIGHTS),
}
# Phase of training: colour, mark and name; any other phase is one without steering.
_PHASES = {
    "injection": (look.COLOURS[1], "o", "steered"),
    "after": (look.COLOURS[0], "^", "no longer steered"),
    "": (look.COLOURS[2], "s", "never steered"),
}
_ORDER = [*(name for *_, name in _PHASES.values()), "first step"]
_SIZE = 3.5  # of a panel, in inches

Path = list[tuple[int, str, float, float]]
"""(step, phase, X, Y), by step."""


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.trajectory
    models, recipes = shown_rows(figure, results)
    lines = [(model, module, False) for model in models for module in spec.modules]
    lines += [(model, spec.modules[0], True) for model in models if spec.saddle]
    canvas = Canvas(figsize=(_SIZE * len(recipes) + 0.4, (_SIZE - 0.2) * len(lines) + 0.4), layout="constrained")
    handles: dict[str, Any] = {}
    for line, (model, module, saddle) in enumerate(lines):
        paths_of = {
            recipe: [
                _smoothed(_path(cell, module, spec.normalised), spec.smooth)
                for cell in results.seeds(model, recipe, spec.analysis).values()
            ]
            for recipe in recipes
        }
        every = [point for paths in paths_of.values() for path in paths for point in path]
        limits = look.padded([0.0, *(x for *_, x, _ in every)]), look.padded([0.0, *(y for *_, y in every)])
        for place, recipe in enumerate(recipes):
            index = line * len(recipes) + place + 1
            panel = canvas.add_subplot(len(lines), len(recipes), index, projection="3d" if saddle else None)
            _Panel(panel, limits, module, spec.normalised, saddle).draw(paths_of[recipe], handles)
            if line == 0:
                panel.set_title(figure.label(recipe), fontsize=10)
            if place == 0 and len(models) > 1 and not saddle:
                panel.annotate(model, (-0.3, 0.5), xycoords="axes fraction", rotation=90, va="center", fontsize=9)
    order = sorted(handles, key=_ORDER.index)
    steps = look.span(len(path) for paths in paths_of.values() for path in paths)
    note = (
        f"{steps} analysed steps per training; {look.seeds(results.cells)}; contours: Z = XY; marks: means over seeds"
    )
    if len({cell.seed for cell in results.cells}) > 1:
        note += "; thin lines: single seeds"
    if spec.smooth > 1:
        note += f"; running means over {spec.smooth} analysed steps"
    look.foot(canvas, note, [handles[name] for name in order], order, columns=len(order))
    return canvas


class _Panel:
    """One phase portrait, flat or on the saddle."""

    def __init__(self, panel, limits, module: str, normalised: bool, saddle: bool) -> None:
        self.panel, (self.across, self.up), self.saddle = panel, limits, saddle
        name, *norms = _MODULES[module]
        x, y = (f"{of}$/{norm}$" if normalised else of for of, norm in zip("XY", norms, strict=True))
        self.x_name, self.y_name = f"push {x}", f"{name}, state {y}"

    def draw(self, paths: Sequence[Path], handles: dict[str, Any]) -> None:
        self._ground()
        mean = _mean(paths)
        for path in paths if len(paths) > 1 else ():
            self._line(path, color=look.FAINT, linewidth=0.5, alpha=0.6)
        self._line(mean, color=look.INK, linewidth=0.9)
        for phase in dict.fromkeys(phase for _, phase, *_ in mean):
            colour, mark, name = _PHASES.get(phase, _PHASES[""])
            style = {"color": colour, "marker": mark, "s": 22, "edgecolor": "white", "linewidth": 0.4}
            handles.setdefault(name, self._marks([point for point in mean if point[1] == phase], **style))
        ring = self._marks(mean[:1], facecolor="none", edgecolor=look.INK, marker="o", s=90, linewidth=1.2)
        handles.setdefault("first step", ring)

    def _ground(self) -> None:
        panel = self.panel
        xs, ys = np.meshgrid(np.linspace(*self.across, 60), np.linspace(*self.up, 60))
        if self.saddle:
            panel.plot_surface(xs, ys, xs * ys, color="#9db7c9", alpha=0.25, linewidth=0, rcount=30, ccount=30)
            panel.view_init(elev=25, azim=-50)
            panel.set_zlabel("Z = XY", fontsize=8, labelpad=1)
            panel.tick_params(labelsize=7, pad=0)
            panel.set_box_aspect(None, zoom=0.76)
            panel.zaxis.set_major_locator(MaxNLocator(4))
        else:
            style = {"colors": "#b9c4cc", "linewidths": 0.7, "negative_linestyles": "dashed"}
            shades = panel.contour(xs, ys, xs * ys, levels=7, **style)
            panel.clabel(shades, fontsize=6.5, fmt="%.2g")
            panel.axhline(0, color=look.FAINT, linewidth=0.8)
            panel.axvline(0, color=look.FAINT, linewidth=0.8)
            panel.grid(False)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        small = {"fontsize": 8 if self.saddle else 9}
        panel.set_xlabel(self.x_name, **small)
        panel.set_ylabel(self.y_name.split(", ")[-1] if self.saddle else self.y_name, **small)
        panel.set_xlim(*self.across)
        panel.set_ylim(*self.up)

    def _line(self, path: Path, **style) -> None:
        self.panel.plot(*self._places(path), **style)

    def _marks(self, path: Path, **style) -> Any:
        further = {"depthshade": False} if self.saddle else {"zorder": 3}
        return self.panel.scatter(*self._places(path), **further, **style)

    def _places(self, path: Path) -> list[list[float]]:
        """The coordinates X, Y and, on the saddle, Z."""
        axes = [[x for *_, x, _ in path], [y for *_, y in path]]
        return [*axes, [x * y for *_, x, y in path]] if self.saddle else axes


def _path(cell: Cell, module: str, normalised: bool) -> Path:
    """X and Y of every analysed step in which both are defined."""
    ending = "_normalised" if normalised else ""
    values: dict[tuple[int, str], dict[str, float]] = {}
    for row in cell.rows:
        if row["module"] == module and row["quantity"] in (f"x{ending}", f"y{ending}") and row["value"] is not None:
            values.setdefault((row["step"], row["phase"]), {})[row["quantity"][0]] = row["value"]
    return [(*key, at["x"], at["y"]) for key, at in sorted(values.items()) if len(at) == 2]


def _smoothed(path: Path, width: int) -> Path:
    """Running means within each phase."""
    smooth: Path = []
    for phase in dict.fromkeys(phase for _, phase, *_ in path):
        part = [point for point in path if point[1] == phase]
        xs, ys = (look.running_mean([point[axis] for point in part], width) for axis in (2, 3))
        smooth += [(step, phase, x, y) for (step, *_), x, y in zip(part, xs, ys, strict=True)]
    return sorted(smooth)


def _mean(paths: Sequence[Path]) -> Path:
    """The mean over seeds, at the steps that all of them have."""
    by_step = [{step: (phase, x, y) for step, phase, x, y in path} for path in paths]
    mean = []
    for step in sorted(set.intersection(*map(set, by_step))):
        phases, xs, ys = zip(*(path[step] for path in by_step), strict=True)
        mean.append((step, phases[0], sum(xs) / len(xs), sum(ys) / len(ys)))
    return mean
