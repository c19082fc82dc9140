"""Figures over scores and analyses, PDF and PNG; one module per kind (`kind:` in a file of config/figures/).

A kind's module has `draw(figure, results, printed)`, which returns the finished canvas. All kinds but
bars write the number of observations and the seeds below the panels.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Results, read_published
from bulwark.reporting.settings import Figure
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
) -> None:
    """Draw the figure `spec` over `cells` (maps with model, recipe, seed, benchmark, scores) to `pdf` and `png`.

    published: a file of config/published, or None. Raises ResultsError that names the file of a missing cell.
    """
    import matplotlib

    figure = spec if isinstance(spec, Figure) else validated(Figure, spec, "the figure's settings")
    kind = importlib.import_module(f"{__name__}.{figure.kind}")
    with matplotlib.rc_context(_STYLE):
        canvas = kind.draw(figure, Results(cells), read_published(published))
        look.title(canvas, figure.title)
        for path in (Path(pdf), Path(png)):
            path.parent.mkdir(parents=True, exist_ok=True)
            # No date inside, so that the same scores give the same file.
            dateless = {"CreationDate": None} if path.suffix == ".pdf" else {}
            canvas.savefig(path, dpi=200, metadata=dateless)
