"""The DAG of a study's checkpoints as a drawing: the base model at the left, a step to the right of its parent.

Recipes that begin alike share what they have in common. What is measured is filled, what is only on the way is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BASE = "base"
MOST = 60  # lines of a drawing
_LINE, _CHARACTER, _GAP, _PAD = 28, 7.3, 34, 9  # pixels: a line's height, a character's width, between steps, in a box


@dataclass(frozen=True)
class Box:
    """A checkpoint at (x, y), its middle left. recipe: all of it; measured: whether the study measures it."""

    x: float
    y: float
    width: float
    label: str
    recipe: str
    measured: bool


@dataclass(frozen=True)
class Drawing:
    """width, height: in pixels. lines: from a parent (x, y) to what a step makes of it (x, y). more: left out."""

    width: float
    height: float
    boxes: list[Box]
    lines: list[tuple[float, float, float, float]]
    more: int


@dataclass
class _Node:
    label: str
    recipe: str
    measured: bool = False
    children: dict[str, _Node] = field(default_factory=dict)


def drawing(recipes: Sequence[str], most: int = MOST) -> Drawing:
    """The tree of recipes `a+b+c` (`base` for the model itself), of the first `most` of them."""
    root = _Node("base model", BASE)
    for recipe in recipes[:most]:
        node = root
        steps = [] if recipe == BASE else recipe.split("+")
        for number, step in enumerate(steps, start=1):
            node = node.children.setdefault(step, _Node(step, "+".join(steps[:number])))
        node.measured = True
    widths: list[float] = []
    _widths(root, 0, widths)
    starts = [sum(widths[:depth]) + depth * _GAP + 1 for depth in range(len(widths))]
    boxes: list[Box] = []
    lines: list[tuple[float, float, float, float]] = []
    rows = _place(root, 0, 0, starts, boxes, lines)
    return Drawing(starts[-1] + widths[-1] + 1, rows * _LINE, boxes, lines, max(0, len(recipes) - most))


def _width(label: str) -> float:
    return len(label) * _CHARACTER + 2 * _PAD


def _widths(node: _Node, depth: int, widths: list[float]) -> None:
    if depth == len(widths):
        widths.append(0)
    widths[depth] = max(widths[depth], _width(node.label))
    for child in node.children.values():
        _widths(child, depth + 1, widths)


def _place(
    node: _Node,
    depth: int,
    row: int,
    starts: Sequence[float],
    boxes: list[Box],
    lines: list[tuple[float, float, float, float]],
) -> int:
    """Place a checkpoint and all behind it from `row` on; the first row that is free then."""
    y = (row + 0.5) * _LINE
    width = _width(node.label)
    boxes.append(Box(starts[depth], y, width, node.label, node.recipe, node.measured))
    free = row
    for child in node.children.values():
        lines.append((starts[depth] + width, y, starts[depth + 1], (free + 0.5) * _LINE))
        free = _place(child, depth + 1, free, starts, boxes, lines)
    return max(free, row + 1)
