"""Shared by all kinds of figures: colours that the colour-blind can distinguish, limits, the note below the panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from bulwark.reporting.results import Cell, Results
from bulwark.reporting.settings import Column, Figure
from bulwark.reporting.worst_cases import estimate_of

# Okabe and Ito's palette (2008), without the yellow, which is hard to see on white; black is for the baseline.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "^", "s", "D", "v", "P", "X")
ROOM = 0.045  # above an axis' upper end, as a share of it
# What the whiskers of bars and lines are, beside the tables, which have standard errors.
WHISKERS = "whiskers: 95 % interval over records (± in tables: one standard error, about half a whisker)"
INK, GREY, FAINT, PUBLISHED = "#222222", "#555555", "#888888", "#f5d547"


_PER_INCH = 17  # characters of the note
_GAP = 0.12  # inches around note and legend


def panels(down: int, across: int, width: float, height: float, used: int | None = None) -> tuple:
    """A canvas of this size in inches, and its panels [down, across]; those after the first `used` are hidden."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    grid = canvas.subplots(down, across, squeeze=False)
    for spare in grid.flat[used or grid.size :]:
        spare.set_visible(False)
    return canvas, grid


def of_recipe(figure: Figure, recipe: str, index: int) -> tuple[str, str, str]:
    """Colour, line style and mark of the recipe at a place in the list of recipes.

    From the eighth on a colour comes again, with another mark: no two of 49 recipes share both.
    """
    mark = MARKS[(index + index // len(COLOURS)) % len(MARKS)]
    return figure.colours.get(recipe, COLOURS[index % len(COLOURS)]), STYLES[index % len(STYLES)], mark


def unit(column: Column) -> str:
    """The label of a metric's axis: its scale or, for a metric without bounds, its name."""
    return f"score, 0 to {column.out_of}" if column.out_of else "percent" if column.percent else column.label


def limits(figure: Figure, column: Column) -> tuple[float | None, float | None]:
    """Limits of a metric's axis: of rates those of the figure, of scales 0 and what is needed; None for no limit.

    There is some room above, so that a mark at the upper end is drawn whole.
    """
    if column.out_of:
        return 0.0, None
    if not column.percent:
        return None, None
    low, high = figure.limits
    return low, high + ROOM * (high - low)


def legend(panels: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Handles and names of a legend for several panels: every name once, from the first panel that has it."""
    handle_of: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handle_of.setdefault(name, handle)
    return list(handle_of.values()), list(handle_of)


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


def foot(
    canvas, note: str, handles: Iterable = (), names: Sequence[str] = (), columns: int = 1, marks: float = 1.0
) -> None:
    """Below the panels, on a strip that is added to the canvas: a legend, and under it the note on the data.

    columns: of the legend, fewer if there is no room. marks: how many times as large they are as in the panels. note:
    sentences or parts of them, a line each; long lines are wrapped. It also becomes a part of the caption.
    """
    wide = int(_PER_INCH * canvas.get_figwidth())
    text = "\n".join(part for line in note.split("\n") for part in textwrap.wrap(line, wide))
    canvas.set_gid(note)
    written = canvas.text(0.01, 0, text, fontsize=8, color=GREY, ha="left", va="bottom")
    below = _GAP + _inches(canvas, written)
    drawn = _legend(canvas, list(handles), list(names), columns, marks) if names else None
    strip = below + (_GAP + _inches(canvas, drawn) if drawn else 0.0)
    height = canvas.get_figheight() + strip
    canvas.set_figheight(height)
    written.set_y(_GAP / 2 / height)
    if drawn:
        drawn.set_bbox_to_anchor((0.5, below / height), canvas.transFigure)
    canvas.get_layout_engine().set(rect=(0, strip / height, 1, 1 - strip / height))


def _legend(canvas, handles: list, names: list[str], columns: int, marks: float) -> Any:
    """A legend in `columns` columns or as many as there is room for."""
    for count in range(columns, 0, -1):
        drawn = canvas.legend(handles, names, loc="lower center", ncols=count, frameon=False, markerscale=marks)
        canvas.draw_without_rendering()
        if count == 1 or drawn.get_window_extent().width <= canvas.bbox.width:
            break
        drawn.remove()
    return drawn


def _inches(canvas, artist) -> float:
    canvas.draw_without_rendering()
    return artist.get_window_extent().height / canvas.dpi


def noted(canvas) -> str:
    """The note of a finished canvas, on one line; "" if it has none."""
    note = "; ".join((canvas.get_gid() or "").split("\n"))
    return f"{note}." if note else ""


def seeds(cells: Sequence[Cell]) -> str:
    """ "seed 0" or "seeds 0, 1, 2": those of all cells."""
    seeds = sorted({cell.seed for cell in cells})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def records(
    columns: Sequence[Column], models: Iterable[str], recipes: Iterable[str], results: Results, each: str = ""
) -> str:
    """Of how many records each metric is: "80 records", or "231 to 260 records (SEP score), 300 (SEP utility)".

    A metric may count only some of them: SEP's score, those whose probe is carried out in the instruction.
    """
    rows = list(product(models, recipes))
    labels: dict[str, list[str]] = {}
    for column in columns:
        counts = [estimate_of(results, *row, column).n for row in rows]
        labels.setdefault(span(counts), []).append(column.label)
    if len(labels) == 1:
        return f"{next(iter(labels))} records{each}"
    told = [f"{counts} ({', '.join(dict.fromkeys(of))})" for counts, of in labels.items()]
    return ", ".join(told).replace(" (", f" records{each} (", 1)


def span(counts: Iterable[int]) -> str:
    """ "80" or "80 to 100": minimum and maximum; "" for no values."""
    known = sorted(set(counts))
    return " to ".join(str(count) for count in dict.fromkeys([*known[:1], *known[-1:]]))
