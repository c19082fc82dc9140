"""What a figure shows, as data: the CSV beside it, a row per mark, read off the finished canvas.

    panel, title, x_axis, y_axis    the panel's number from 1, in reading order, its title, and what its axes are
    mark            line, point, bar, bin (of a histogram), whisker, band, cell (of a map), or what a kind calls it
    series          what the legend calls it: by its own name, or by its colour
    at              the name below a bar or cell, where places on the axis have names
    x, y            where it is; of a bar, a bin and a cell, y is its height or value
    low, high       the ends of a whisker or a band, and the edges of a bin
    text            of a token

A kind of figure whose marks do not show their numbers by where they are (tokens) says them itself: `rows(figure,
results)`, without the panel's part. Panels in three dimensions show again what a flat one does, and are left out.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from math import isnan
from typing import Any

COLUMNS = ("panel", "title", "x_axis", "y_axis", "mark", "series", "at", "x", "y", "low", "high", "text")
_TOUCHING = 1e-6  # of a bar's width: what lies between two bins of a histogram at most

Row = dict[str, Any]


def written(rows: Iterable[Row]) -> str:
    """Rows as the text of a CSV file; numbers with six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def rows_of(canvas) -> list[Row]:
    """Every mark of a finished canvas."""
    named = _names([panel for panel in canvas.axes if panel.get_visible()], canvas.legends)
    rows: list[Row] = []
    shown = [panel for panel in canvas.axes if panel.get_visible() and panel.get_label() != "<colorbar>"]
    for number, panel in enumerate(shown, start=1):
        if panel.name == "3d":
            continue
        title = panel.get_title() or panel.get_title(loc="left")
        of_panel = {"panel": number, "title": title, "x_axis": panel.get_xlabel(), "y_axis": panel.get_ylabel()}
        for artist, row in _marks(panel):
            rows.append({**of_panel, "series": _name(artist, named), **row})
    return rows


def _marks(panel) -> Iterator[tuple[Any, Row]]:
    """Each artist of a panel with what it shows."""
    from matplotlib.collections import LineCollection, PathCollection, PolyCollection
    from matplotlib.container import BarContainer, ErrorbarContainer

    places = _Places(panel.xaxis)
    caps = {id(line) for each in panel.containers if isinstance(each, ErrorbarContainer) for line in each.lines[1]}
    for line in panel.lines:
        in_x, in_y = line.get_transform().contains_branch_seperately(panel.transData)
        if id(line) in caps or not (in_x or in_y):
            continue
        mark = "point" if line.get_linestyle() in ("None", "", " ") else "line"
        points = list(zip(*(map(float, axis) for axis in line.get_data()), strict=True))
        if not (in_x and in_y):  # across the whole panel
            points = points[:1]
        for x, y in points:
            if not (isnan(x) or isnan(y)):  # a legend's entry for what was not measured
                yield line, {"mark": mark, **({"x": x} if in_x else {}), **({"y": y} if in_y else {})}
    for container in panel.containers:
        if isinstance(container, BarContainer):
            edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in container.patches]
            apart = [abs(after[0] - before[1]) for before, after in itertools.pairwise(edges)]
            bins = bool(apart) and max(apart) <= _TOUCHING * (edges[0][1] - edges[0][0])
            for bar, (low, high) in zip(container.patches, edges, strict=True):
                middle, height = (low + high) / 2, float(bar.get_height())
                ends = {"low": float(low), "high": float(high)} if bins else {"at": places.of(middle)}
                yield bar, {"mark": "bin" if bins else "bar", "x": float(middle), "y": height, **ends}
    for collection in panel.collections:
        if isinstance(collection, PathCollection):
            for x, y in collection.get_offsets().tolist():
                yield collection, {"mark": "point", "x": x, "y": y}
        elif isinstance(collection, PolyCollection):
            for path in collection.get_paths():
                heights: dict[float, list[float]] = {}
                for x, y in path.vertices.tolist():
                    heights.setdefault(x, []).append(y)
                for x, ys in sorted(heights.items()):
                    yield collection, {"mark": "band", "x": x, "low": min(ys), "high": max(ys)}
        elif isinstance(collection, LineCollection):
            for (x, low), (_, high) in (segment.tolist() for segment in collection.get_segments() if len(segment) == 2):
                yield collection, {"mark": "whisker", "at": places.of(x), "x": x, "low": low, "high": high}
    beside = _Places(panel.yaxis)
    for image in panel.images:
        for line, values in enumerate(image.get_array().tolist()):
            for column, value in enumerate(values):
                if value is not None:
                    named = {"series": beside.of(line), "at": places.of(column)}
                    yield image, {"mark": "cell", "x": column, "y": float(value), **named}


class _Places:
    """The names that an axis has for places, none where it has numbers alone."""

    def __init__(self, axis) -> None:
        from matplotlib.ticker import FixedLocator

        fixed = isinstance(axis.get_major_locator(), FixedLocator)
        texts = [label.get_text() for label in axis.get_ticklabels()] if fixed else []
        self._names = [(place, text) for place, text in zip(axis.get_ticklocs(), texts, strict=False) if text]

    def of(self, place: float) -> str:
        """The nearest name within half of the distance between two."""
        near = min(self._names, key=lambda known: abs(known[0] - place), default=(float("inf"), ""))
        return near[1] if abs(near[0] - place) <= 0.5 else ""


def _names(panels: Iterable[Any], legends: Iterable[Any]) -> dict[str, str]:
    """{colour: name} of what legends name; a colour with two names has none."""
    found: dict[str, set[str]] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(_colour(handle), set()).add(name)
    for legend in legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            found.setdefault(_colour(handle), set()).add(text.get_text())
    return {colour: next(iter(names)) for colour, names in found.items() if colour and len(names) == 1}


def _name(artist, named: dict[str, str]) -> str:
    """What an artist is called: as its kind has named it (`set_gid`), by its own label, or by its colour."""
    label = str(artist.get_label())
    return artist.get_gid() or (label if label and not label.startswith("_") else named.get(_colour(artist), ""))


def _colour(artist) -> str:
    """An artist's colour without its transparency; "" for none."""
    from matplotlib.colors import to_hex
    from matplotlib.container import BarContainer, ErrorbarContainer

    if isinstance(artist, BarContainer):
        artist = artist.patches[0] if artist.patches else None
    elif isinstance(artist, ErrorbarContainer):
        line, _, bars = artist.lines
        artist = line if line is not None else bars[0]
    for getter in ("get_color", "get_facecolor", "get_edgecolor"):
        found = getattr(artist, getter, lambda: None)()
        if found is None or (not isinstance(found, str) and len(found) == 0):
            continue
        first = found if isinstance(found, str) or not hasattr(found[0], "__len__") else found[0]
        return to_hex(first)
    return ""
