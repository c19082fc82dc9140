"""Metrics: the mean of a column of rows, with its standard error and interval. Free of torch and numpy at import.

A row is what is known of one record. It has a column named after each metric: the record's own value, null where the
record does not count. The metric is the mean of the column over the records that count, which is all that standard
errors and paired tests need. A metric that is no such mean (an AUC) has no column and brings its own error. Records
that ask for the same fact have it in the column "fact"; they are one cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bulwark import files

Row = dict[str, Any]
Groups = dict[str, dict[str, "Metric"]]  # {group: {metric: Metric}}


class Metric(TypedDict):
    """A mean over `n` records. With none, `value` is null; with fewer than two, `stderr` is. Rates lie in 0 … 1.

    higher_is_better: null for what is described only, and is neither better nor worse.
    """

    value: float | None
    stderr: float | None
    interval: list[float] | None
    n: int
    higher_is_better: bool | None


def metric(rows: Iterable[Row], name: str, higher_is_better: bool | None) -> Metric:
    """Average the column `name` over the rows where it is not null; Wilson's 95 % interval if it is a rate."""
    from bulwark.evaluation.statistics import FACT, estimate, mean_and_error, mean_interval, sample

    rows = list(rows)
    values = [float(row[name]) for row in rows if row[name] is not None]
    if any(FACT in row for row in rows):
        found = estimate(sample({0: rows}, name))
        value, stderr, interval = found.value, found.stderr, found.interval
    else:
        (value, stderr), interval = mean_and_error(values), mean_interval(values)
    return Metric(
        value=value,
        stderr=stderr,
        interval=list(interval) if interval else None,
        n=len(values),
        higher_is_better=higher_is_better,
    )


def metrics(rows: Sequence[Row], directions: Mapping[str, bool | None]) -> dict[str, Metric]:
    """`metric` for each of {metric: whether higher is better}."""
    return {name: metric(rows, name, higher) for name, higher in directions.items()}


def grouped(rows: Sequence[Row], key: Callable[[Row], Hashable], directions: Mapping[str, bool | None]) -> Groups:
    """`metrics` of each group of rows with the same `key`, groups sorted by name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(key(row)), []).append(row)
    return {group: metrics(groups[group], directions) for group in sorted(groups)}


def of_layers(rows: Sequence[Row], directions: Mapping[str, bool | None]) -> dict[str, Metric]:
    """`metrics` of the columns `<name>_<number>` of each of {name: whether higher is better}: one per layer."""
    numbered = [column.rpartition("_") for column in rows[0]]
    columns = {
        f"{name}_{number}": directions[name] for name, _, number in numbered if number.isdigit() and name in directions
    }
    return metrics(rows, columns)


def by_layer(name: str, values: Iterable[float | None]) -> Row:
    """The columns of a row for values that there is one of for each layer: {`<name>_<number>`: value}, from 0."""
    return {f"{name}_{number}": value for number, value in enumerate(values)}


def records_beside(scores: Path) -> Path:
    """The file with one row per record that belongs to a scores file."""
    return Path(scores).with_suffix(".records.jsonl")


def identity_of(known: Mapping[str, Any]) -> dict[str, Any]:
    """Whose scores a file holds: of what is known, the keys with which it begins."""
    return {key: known[key] for key in ("benchmark", "model", "recipe", "seed")}


def without_model(directions: Mapping[str, bool | None], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds of a trial whose training diverged: every metric null. The reason is under "diverged"."""
    none = Metric(value=None, stderr=None, interval=None, n=0, higher_is_better=None)
    return {
        "n": 0,
        "metrics": {name: Metric(**{**none, "higher_is_better": higher}) for name, higher in directions.items()},
        "breakdowns": {},
        "reported": {"diverged": provenance["diverged"]},
        "provenance": dict(provenance),
    }


def write_scores(scores: Path, result: dict[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Write a scores file, and the rows beside it. Returns `result`."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    files.write_text(records_beside(scores), "".join(lines))
    files.write_text(scores, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return result
