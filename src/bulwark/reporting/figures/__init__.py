"""Figures over scores and analyses, PDF, PNG and CSV; one module per kind (`kind:` in a file of config/figures/).

A kind's module has `draw(figure, results, printed)`, which returns the finished canvas. Below the panels it says of how
many observations and seeds they are, and what the marks mean that were drawn. The files carry the whole caption with
them: in a PNG as "Title" and "Description", in a PDF as title and subject. The CSV has what was drawn
(`bulwark.reporting.figures.drawn`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.reporting.figures import drawn, look
from bulwark.reporting.results import Cell, Results, read_published
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_columns
from bulwark.settings import validated

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "bulwark",
}


def make_figure(
    spec: Figure | Mapping[str, Any],
    cells: Iterable[Mapping[str, Any]],
    published: Path | None,
    pdf: Path,
    png: Path,
    csv: Path | None = None,
    missing: Iterable[str | Path] = (),
    command: str = Cell.command,
) -> None:
    """Draw the figure `spec` over `cells` (maps with model, recipe, seed, benchmark, scores) to `pdf` and `png`.

    csv: where what is drawn is written as numbers, if it is to be. published: a file of config/published, or None.
    missing: scores that a cross shows as missing. command: that makes a file, up to its path. Raises ResultsError that
    names any other file that is missing, and the command that makes it.
    """
    import matplotlib

    figure = spec if isinstance(spec, Figure) else validated(Figure, spec, "the figure's settings")
    kind = importlib.import_module(f"{__name__}.{figure.kind}")
    with matplotlib.rc_context(_STYLE):
        results, printed = Results(cells, missing, command), read_published(published)
        canvas = kind.draw(figure, results, printed)
        look.title(canvas, figure.title)
        caption = caption_of(figure, results, printed, look.noted(canvas))
        for path in (Path(pdf), Path(png)):
            path.parent.mkdir(parents=True, exist_ok=True)
            # No date inside, so that the same scores give the same file.
            told = {"Title": figure.title, "CreationDate": None, "Subject": caption}
            if path.suffix == ".png":
                told = {"Title": figure.title, "Description": caption}
            canvas.savefig(path, dpi=200, metadata=told)
        if csv is not None:
            rows = kind.rows(figure, results) if hasattr(kind, "rows") else drawn.rows_of(canvas)
            files.write_text(Path(csv), drawn.written(rows))


def caption_of(figure: Figure, results: Results, printed: Mapping[tuple, Any], note: str) -> str:
    """The caption of a figure as it came out: its own, the notes that apply, and what its marks are."""
    columns = shown_columns(figure.columns, results)
    recipes = list(figure.recipes()) or results.recipes
    shown = {c.printed_as(m, r) for m in results.models for r in recipes for c in columns}
    shown |= {(m, r, "average", a.label) for m in results.models for r in recipes for a in figure.averages}
    return " ".join(filter(None, (figure.described(columns, recipes, bool(shown & set(printed))), note)))
