"""Everything measured as one tidy table, results.csv and results.parquet: a row per metric of a checkpoint.

Columns: model, recipe, seed, benchmark (or analysis), metric, value, stderr, low and high (the 95 % interval), n,
direction ("higher" or "lower" is better; empty if neither is), file (the scores file, which has the breakdowns and the
provenance). Rates are fractions, 0 to 1; what a benchmark does not know is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bulwark import files
from bulwark.reporting.numbers import exact
from bulwark.reporting.results import Results

_TYPES = {
    **dict.fromkeys(("model", "recipe"), "string"),
    "seed": "int64",
    **dict.fromkeys(("benchmark", "metric"), "string"),
    **dict.fromkeys(("value", "stderr", "low", "high"), "float64"),
    "n": "int64",
    **dict.fromkeys(("direction", "file"), "string"),
}


def write_results(cells: Iterable[Mapping[str, Any]], csv: Path, parquet: Path) -> pd.DataFrame:
    """Write the table of all metrics of `cells` (maps with model, recipe, seed, benchmark, scores); returns it.

    Rows are in the order of the cells and, within a file, of its metrics. Raises ResultsError naming a missing file.
    """
    rows = [row for cell in Results(cells).cells for row in _rows(cell)]
    frame = pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)
    files.write_text(Path(csv), frame.to_csv(index=False))
    parquet = Path(parquet)
    unfinished = parquet.with_name(f".{parquet.name}.tmp")  # so that nobody reads half a file
    frame.to_parquet(unfinished, index=False)
    unfinished.replace(parquet)
    return frame


def _rows(cell) -> Iterable[dict[str, Any]]:
    for name, metric in cell.content["metrics"].items():
        low, high = metric["interval"] or (None, None)
        yield {
            **{key: getattr(cell, key) for key in ("model", "recipe", "seed", "benchmark")},
            "metric": name,
            "value": metric["value"],
            "stderr": None if metric["stderr"] is None else exact(metric["stderr"]),
            "low": low,
            "high": high,
            "n": metric.get("n", cell.content["n"]),
            "direction": {True: "higher", False: "lower", None: ""}[metric["higher_is_better"]],
            "file": str(cell.scores),
        }
