"""Example answers: a few records of every benchmark, and what the recipes of a study made of each, side by side.

Records on which the recipes differ come first, so that they show what a defense or an attack changes, and not how
often: that is what tables are for. The choice depends on nothing but the files. Of long texts the beginning is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.benchmarks import benchmark_of
from bulwark.evaluation.benchmark import Benchmark
from bulwark.evaluation.score import read_answers
from bulwark.models.answers import Answer
from bulwark.reporting.numbers import number
from bulwark.reporting.origins import judge
from bulwark.reporting.page.untrusted import clipped
from bulwark.reporting.results import Cell, ResultsError

RECORDS = 3  # of each benchmark
VARIANTS = 2  # prompts of a record
PROMPT_CHARACTERS = 600  # of each of its turns
ANSWER_CHARACTERS = 400
_FIELD_CHARACTERS, _FIELDS, _METRICS = 80, 4, 5


@dataclass(frozen=True)
class Said:
    """An answer of a recipe at a seed. cut: characters that are not shown. judged: (metric, value of this record).

    origin: the id of the sheet on where its scores come from, "" if the page has none.
    """

    recipe: str
    seed: int
    attacked: bool
    text: str
    cut: int
    judged: list[tuple[str, str]]
    note: str
    origin: str


@dataclass(frozen=True)
class Asked:
    """A prompt of a record, turns as (role, text, characters that are not shown), and what was answered to it."""

    variant: str
    turns: list[tuple[str, str, int]]
    answers: list[Said]


@dataclass(frozen=True)
class Example:
    """A record. facts: short texts of it that no prompt shows (a witness, the right answer). more: further prompts."""

    record: str
    facts: list[tuple[str, str]]
    asked: list[Asked]
    more: int


@dataclass(frozen=True)
class Group:
    """The examples of a benchmark on a model. of: records in all; recipes: of the study; differing: records on which
    the recipes that are shown come out differently."""

    model: str
    benchmark: str
    recipes: list[str]
    judged_by: str
    metric: str
    of: int
    differing: int
    of_recipes: int
    examples: list[Example]
    without: list[str]


def group(given: Mapping[str, Any], origin: Callable[[str, str, str], str]) -> Group:
    """The examples of one benchmark and model of a study. origin: the id of the sheet on a model, recipe, benchmark.

    given: model, benchmark, records (the file), of_recipes (how many the study has), and `cells`, each with recipe,
    seed, scores, answers and attacked, all of which answered the same records. Raises ResultsError for a file that is
    missing or does not fit the records.
    """
    told = {each["recipe"]: each for each in given["cells"]}
    every = [
        Cell(given["model"], each["recipe"], int(each["seed"]), given["benchmark"], Path(each["scores"]))
        for each in told.values()
    ]
    cells = {cell.recipe: cell for cell in every if not cell.diverged}
    without = [cell.recipe for cell in every if cell.diverged]
    known = {"model": given["model"], "benchmark": given["benchmark"], "of_recipes": given["of_recipes"]}
    if not cells:
        nothing = {"judged_by": "", "metric": "", "of": 0, "differing": 0, "examples": [], "recipes": []}
        return Group(**known, **nothing, without=without)
    made = next(iter(cells.values())).content["provenance"]
    benchmark = benchmark_of(made["module"], made["settings"])
    records = {record.id: record for record in benchmark.load(_there(Path(given["records"])))}
    variants = {key: benchmark.variants(record) for key, record in records.items()}
    answers = {recipe: read_answers(_there(Path(told[recipe]["answers"])), variants) for recipe in cells}
    rows = {recipe: _rows(cell, records) for recipe, cell in cells.items()}
    metrics = [name for name in benchmark.metrics if any(name in row for of in rows.values() for row in of.values())]
    headline = metrics[0] if metrics else ""
    chosen, differing = choose({key: {r: rows[r][key].get(headline) for r in rows} for key in records}, answers)

    def said(recipe: str, record: str, variant: str) -> Said:
        answer: Answer = answers[recipe][record][variant]
        text, cut = clipped(answer.response if benchmark.prompts else _unpacked(answer.response), ANSWER_CHARACTERS)
        row, cell = rows[recipe][record], cells[recipe]
        values = [(name, _value(row[name])) for name in metrics if row.get(name) is not None]
        note = "cut by the length limit" if answer.finish == "length" else ""
        attacked, sheet = bool(told[recipe]["attacked"]), origin(cell.model, recipe, cell.benchmark)
        return Said(recipe, cell.seed, attacked, text, cut, values[:_METRICS], note, sheet)

    def example(key: str) -> Example:
        prompts = _prompts(benchmark, records[key])
        asked = [
            Asked(variant, [(role, *clipped(text, PROMPT_CHARACTERS)) for role, text in turns], of_recipes)
            for variant, turns in list(prompts.items())[:VARIANTS]
            if (of_recipes := [said(recipe, key, variant) for recipe in cells])
        ]
        facts = _facts(records[key], [text for turns in prompts.values() for _, text in turns])
        return Example(key, facts, asked, max(0, len(prompts) - VARIANTS))

    return Group(
        **known,
        recipes=list(cells),
        judged_by=judge(made["settings"]) or "computed from the answers",
        metric=headline,
        of=len(records),
        differing=differing,
        examples=[example(key) for key in chosen],
        without=without,
    )


def choose(
    values: Mapping[str, Mapping[str, float | None]], answers: Mapping[str, Mapping[str, Mapping[str, Answer]]]
) -> tuple[list[str], int]:
    """RECORDS records to show, and on how many of all the recipes differ.

    values: {record: {recipe: the headline metric of this record}}, in the order of the file. Those come first whose
    values lie furthest apart, then those with most different answers, then the first of the file; and of two with the
    same value for every recipe, one only, as long as others differ.
    """

    def spread(record: str) -> float:
        given = [float(value) for value in values[record].values() if isinstance(value, int | float)]
        return max(given) - min(given) if len(given) > 1 else 0.0

    def wordings(record: str) -> int:
        return len({tuple(a.response for a in of_recipe[record].values()) for of_recipe in answers.values()})

    ranked = sorted(values, key=lambda record: (-spread(record), -wordings(record)))  # stable: the file's order
    first: dict[tuple[Any, ...], str] = {}
    for record in ranked:
        first.setdefault(tuple(values[record].values()), record)
    differing = sum(spread(record) > 0 for record in ranked)
    distinct = [record for record in first.values() if spread(record) > 0]
    chosen = list(dict.fromkeys([*distinct, *ranked]))[:RECORDS]
    return chosen, differing


def _there(path: Path) -> Path:
    if not seals.checked(path).exists():
        raise ResultsError(f"{path} is missing: the report shows examples of it. Make it with: snakemake {path}")
    return path


def _rows(cell: Cell, records: Iterable[str]) -> dict[str, dict[str, Any]]:
    rows = {row["id"]: row for row in cell.rows}
    if missing := [key for key in records if key not in rows]:
        raise ResultsError(
            f'{cell.scores}: no row of the record "{missing[0]}" is beside it. Delete the file and make it again.'
        )
    return rows


def _prompts(benchmark: Benchmark, record: Any) -> dict[str, Sequence[tuple[str, str]]]:
    """{variant: turns as (role, text)}; without prompts of its own, the record, but for its `_facts`."""
    if benchmark.prompts:
        return {v: [(turn.role, turn.text) for turn in turns] for v, turns in benchmark.prompts(record).items()}
    fields = record.model_dump(exclude={"id"}).items()
    texts = [(name, text, isinstance(value, str)) for name, value in fields if (text := _joined(value)).strip()]
    shown = [(n, t) for i, (n, t, plain) in enumerate(texts) if i == 0 or not plain or len(t) > _FIELD_CHARACTERS]
    return dict.fromkeys(benchmark.variants(record), shown)


def _joined(value: Any) -> str:
    """A text, or texts and numbers as lines; "" for anything else."""
    if isinstance(value, list | tuple):
        return "\n".join(_joined(part) for part in value)
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {text}" for key, part in value.items() if (text := _joined(part)))
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _facts(record: Any, shown: Sequence[str]) -> list[tuple[str, str]]:
    found = [
        (name, value)
        for name, value in record.model_dump(exclude={"id"}).items()
        if isinstance(value, str) and 0 < len(value) <= _FIELD_CHARACTERS and not any(value in text for text in shown)
    ]
    return found[:_FIELDS]


def _unpacked(response: str) -> str:
    """What a benchmark keeps as JSON instead of a text, to read: the text in it, and what else it noted."""
    try:
        found = json.loads(response)
    except ValueError:
        return response  # a text after all
    if not isinstance(found, dict):
        return response
    text = found.pop("text", None)
    noted = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items() if value is not None]
    return "\n".join([text, *noted] if isinstance(text, str) else noted)


def _value(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return number(value, 3)
    return f"{value:g}" if isinstance(value, int | float) else str(value)
