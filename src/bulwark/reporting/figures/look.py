"""Shared by all kinds of figures: colours that the colour-blind can distinguish, limits, the note below the panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from bulwark.reporting.results import Cell
from bulwark.reporting.settings import Column, Figure

# Okabe and Ito's palette (2008), without the yellow, which is hard to see on white; black is for the baseline.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "^", "s", "D", "v", "P", "X")
INK, GREY, FAINT, PUBLISHED = "#222222", "#555555", "#888888", "#f5d547"


def panels(down: int, across: int, width: float, height: float, used: int | None = None) -> tuple:
    """A canvas of this size in inches, and its panels [down, across]; those after the first `used` are hidden."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    grid = canvas.subplots(down, across, squeeze=False)
    for spare in grid.flat[used or grid.size :]:
        spare.set_visible(False)
    return canvas, grid


def of_recipe(figure: Figure, recipe: str, index: int) -> tuple[str, str, str]:
    """Colour, line style and mark of the recipe at a place in the list of recipes."""
    return figure.colours.get(recipe, COLOURS[index % 7]), STYLES[index % 4], MARKS[index % 7]


def unit(column: Column) -> str:
    """The label of a metric's axis: its scale or, for a metric without bounds, its name."""
    return f"0 to {column.out_of}" if column.out_of else "%" if column.percent else column.label


def limits(figure: Figure, column: Column) -> tuple[float, float] | None:
    """Limits of a metric's axis: of rates those of the figure, of scales their ends; None for others."""
    return (0.0, column.out_of) if column.out_of else figure.limits if column.percent else None


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Running means over `width` values, fewer at the ends."""
    windows = (values[max(0, i - width // 2) : i + (width + 1) // 2] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def padded(values: Iterable[float], share: float = 0.07) -> tuple[float, float]:
    """Limits around all values, with a margin of this share of their range on both sides."""
    known = list(values)
    low, high = min(known), max(known)
    margin = share * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def title(canvas, text: str) -> None:
    """Write the title above the panels, wrapped."""
    written = canvas.suptitle(text, fontsize=11)
    share = written.get_window_extent().width / (0.98 * canvas.bbox.width)
    if share > 1:
        written.set_text(textwrap.fill(text, int(len(text) / share)))


def legend(canvas, handles: Iterable, names: Iterable[str], columns: int, **further) -> None:
    """Put a legend below the panels, in `columns` columns or as many as there is room for."""
    handles, names = list(handles), list(names)
    for count in range(columns, 0, -1):
        drawn = canvas.legend(handles, names, loc="outside lower center", ncols=count, frameon=False, **further)
        canvas.draw_without_rendering()
        if count == 1 or drawn.get_window_extent().width <= canvas.bbox.width:
            return
        drawn.remove()


def foot(
    canvas, note: str, handles: Iterable = (), names: Sequence[str] = (), columns: int = 1, marks: float = 1.0
) -> None:
    """Below the panels: a legend, its marks so many times as large as in the panels, and the note on the data."""
    canvas.supxlabel(note, fontsize=8, color=GREY, x=0.01, ha="left")
    if names:
        # The layout puts both at the bottom, so the legend is padded by the height of the note.
        padding = 0.3 + 1.05 * len(note.split("\n"))
        legend(canvas, handles, names, columns, borderpad=padding, markerscale=marks)


def seeds(cells: Sequence[Cell]) -> str:
    """ "seed 0" or "seeds 0, 1, 2": those of all cells."""
    seeds = sorted({cell.seed for cell in cells})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def span(counts: Iterable[int]) -> str:
    """ "80" or "80 to 100": minimum and maximum; "" for no values."""
    known = sorted(set(counts))
    return " to ".join(str(count) for count in dict.fromkeys([*known[:1], *known[-1:]]))
