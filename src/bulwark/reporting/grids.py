"""A table as the report shows it: a field per row and metric, each with the measurement that it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark.reporting.crossed import tables as crossed
from bulwark.reporting.numbers import NONE, error, number, with_error
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Column, Table
from bulwark.reporting.tables import (
    caption_of,
    column_name,
    direction,
    label_of,
    members,
    reading,
    shown_columns,
    table_frame,
)
from bulwark.settings import validated

if TYPE_CHECKING:
    import pandas as pd

ELSEWHERE = "Click a number for n, the values of the seeds and where it comes from."


@dataclass(frozen=True)
class Field:
    """A number, its error and the published one, as text; origin: the id of the sheet that says where it is from.

    attack: of a worst case, which attacks it is of, or why there is none. difference: ours minus published. best:
    whether it is clearly the best of its model.
    """

    value: str
    error: str
    published: str
    origin: str
    attack: str = ""
    difference: str = ""
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. heads: (label, unit, arrow) per metric. models: (model, its rows).

    A row is (the recipe as it is shown, fields, recipe). benchmarks: of each column, "" for an average.
    """

    name: str
    title: str
    caption: str
    heads: list[tuple[str, str, str]]
    benchmarks: list[str]
    models: list[tuple[str, list[tuple[str, list[Field], str]]]]

    @property
    def wide(self) -> bool:
        """Whether it does not fit on a phone."""
        fields = [field for _, rows in self.models for _, fields, _ in rows for field in fields]
        return len(self.heads) > (1 if any(field.published for field in fields) else 2)


def grid(
    name: str,
    spec: Mapping[str, Any],
    cells: Iterable[Mapping[str, Any]],
    published: Path | None,
    origin: Callable[[str, str, str, str], str],
) -> Grid:
    """The table `name` as the report shows it.

    origin: gives the id of the sheet on a model, recipe and benchmark, and is told the metric that is shown.
    """
    table = validated(Table, spec, "the table's settings")
    results = Results(cells)
    if table.cross is not None:
        return _crossed(name, table, results)
    columns = shown_columns(table.columns, results)
    frame = table_frame(table, results, published)
    heads, keys = [], []
    for column in columns:
        unit = f"0 to {column.out_of}" if column.out_of else "%" if column.percent else ""
        heads.append((column.label, unit, direction(column, results).strip()))
        keys.append((column_name(column, ""), column.places, column))
    for average in table.averages:
        if len(of := members(average, columns)) > 1:
            heads.append((label_of(average, of), heads[columns.index(of[0])][1], direction(of[0], results).strip()))
            keys.append((f"{average.label}.", of[0].places, None))
    models: dict[str, list[tuple[str, list[Field], str]]] = {}
    for line in frame.to_dict("records"):
        fields = []
        for key, places, column in keys:
            value, stderr = _known(line, key + "value"), _known(line, key + "stderr")
            printed = with_error(_known(line, key + "published"), _known(line, key + "published_stderr"), places)
            fields.append(
                Field(
                    value=number(value, places),
                    error="" if stderr is None or value is None else error(stderr, places),
                    published="" if printed == NONE else printed,
                    origin=_origin(origin, line, column),
                    attack=line.get(key + "attack", ""),
                    difference=number(_known(line, key + "difference"), places, signed=True),
                    best=bool(line.get(key + "best", False)),
                )
            )
        models.setdefault(line["model"], []).append((table.label(line["recipe"]), fields, line["recipe"]))
    note = f"{_measured_on(table, frame)} {reading(table, columns, frame, compact=True, elsewhere=ELSEWHERE)}"
    parts = (caption_of(table, columns, frame), note)
    benchmarks = ["" if column is None else column.benchmark for _, _, column in keys]
    return Grid(name, table.title, " ".join(filter(None, parts)), heads, benchmarks, list(models.items()))


def _crossed(name: str, table: Table, results: Results) -> Grid:
    """A cross table, a row per defense and attack, or the ranking of its defenses; `Told` has them as text."""
    told = crossed.ranking(table.cross, results) if table.ranking else crossed.cross(table.cross, results)
    _, *own = told.presented.columns
    named, numbers = (own[:1], own[1:]) if table.ranking else (own[:2], own[2:])
    models: dict[str, list[tuple[str, list[Field], str]]] = {}
    for line, defense in zip(told.presented.to_dict("records"), told.frame["defense"], strict=True):
        fields = [Field(str(line[key]), "", "", "") for key in numbers]
        models.setdefault(line["", "model"], []).append((", ".join(line[key] for key in named), fields, defense))
    heads = [(top or part, part if top else "", "") for top, part in numbers]
    families = {family.label: family.benchmark for family in table.cross.families.values()}
    benchmarks = [families.get(top.split(" (")[0], "") for top, _ in numbers]
    caption = " ".join(filter(None, (table.caption.strip(), told.note)))
    return Grid(name, table.title, caption, heads, benchmarks, list(models.items()))


def _origin(origin: Callable[[str, str, str, str], str], line: Mapping[str, Any], column: Column | None) -> str:
    """The sheet on what a field shows; none on an average or on attacks, which are several."""
    if column is None or column.case is not None:
        return ""
    return origin(line["model"], line["recipe"], column.benchmark, column.metric)


def _known(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    return None if value is None or math.isnan(value) else value


def _measured_on(table: Table, frame: pd.DataFrame) -> str:
    """The model, if it is one, and the seeds: "miniature; seeds 0, 1, 2 (base: 0)."."""
    models = frame["model"].unique()
    lines = frame.drop_duplicates("recipe").sort_values("seeds", key=lambda seeds: -seeds.str.len(), kind="stable")
    usual, *others = (
        (seeds.replace(" ", ", "), ", ".join(table.label(line["recipe"]) for line in of_them))
        for seeds, of_them in groupby(lines.to_dict("records"), key=lambda line: line["seeds"])
    )
    said = f"seeds {usual[0]}" if "," in usual[0] else f"seed {usual[0]}"
    if others:
        said += f" ({'; '.join(f'{recipes}: {seeds}' for seeds, recipes in others)})"
    return f"Model {models[0]}, {said}." if len(models) == 1 else f"{said.capitalize()}."
