"""Benchmarks: one module each, found by its name. Here is what they share: metrics and the scores file.

A benchmark module has
    Settings                      what can be set; holds `decoding`
    Record                        the schema of its data
    METRICS                       {metric: whether higher is better}, the first being the headline
    load(path)                    the records of a data file
    prompts(record, settings)     {variant: turns}, the prompts that a checkpoint answers
    score(record, responses, settings)   one flat row per record, from {variant: response}
    aggregate(rows, settings)     {metric: Metric}
    breakdowns(rows, settings)    {grouping: {group: {metric: Metric}}}
    reported(rows, settings)      further numbers, without an error: lengths, say

A row has a column named after each metric: the record's own value, null where the record does not count. The metric
is the mean of the column over the records that count, which is all that standard errors and paired tests need.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from bulwark.errors import ConfigurationError, RecordError, nearest
from bulwark.settings import Closed, validated

Row = dict[str, Any]


class Metric(TypedDict):
    """A mean over `n` records. With none, `value` is null; with fewer than two, `stderr` is. Rates lie in 0 … 1."""

    value: float | None
    stderr: float | None
    interval: list[float] | None
    n: int
    higher_is_better: bool


class Answer(Closed):
    """One line of an answers file. `tokens` counts the generated ones; finish "length" means that the limit cut it."""

    id: str
    variant: str
    response: str
    tokens: int
    finish: str
    truncated: bool


def module_of(name: str) -> ModuleType:
    """Import the benchmark module `name`. Raises ConfigurationError with the nearest name if there is none."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise ConfigurationError(f'There is no benchmark module "{name}".{nearest(name, known)}')
    return importlib.import_module(f"{__name__}.{name}")


def score_file(
    *,
    answers: Path,
    records: Path,
    module: str,
    settings: Mapping[str, Any] | Closed,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    scores: Path,
) -> dict[str, Any]:
    """Score the answers of one checkpoint: write `scores` (JSON) and, beside it, the rows (`records_beside(scores)`).

    identity: benchmark, model, recipe, seed. provenance: how the answers were made; the resolved settings and the
    digests of answers and records are added. Raises RecordError if answers are missing, doubled or of no record.
    """
    from bulwark import manifests

    answers, records, scores = Path(answers), Path(records), Path(scores)
    benchmark = module_of(module)
    if not isinstance(settings, Closed):
        settings = validated(benchmark.Settings, settings, f"settings of the benchmark {module}")
    known = benchmark.load(records)
    expected = {record.id: list(benchmark.prompts(record, settings)) for record in known}
    given = read_answers(answers, expected)
    rows = [
        {"id": record.id, **benchmark.score(record, {v: a.response for v, a in given[record.id].items()}, settings)}
        for record in known
    ]
    every = [answer for variants in given.values() for answer in variants.values()]
    result = {
        **{key: identity[key] for key in ("benchmark", "model", "recipe", "seed")},
        "n": len(rows),
        "metrics": benchmark.aggregate(rows, settings),
        "breakdowns": benchmark.breakdowns(rows, settings),
        "reported": {
            "answers": len(every),
            "truncated_prompts": sum(answer.truncated for answer in every),
            "answers_at_length_limit": sum(answer.finish == "length" for answer in every),
            "empty_answers": sum(not answer.response.strip() for answer in every),
            "mean_tokens": sum(answer.tokens for answer in every) / len(every),
            **benchmark.reported(rows, settings),
        },
        "provenance": {
            **provenance,
            "module": module,
            "settings": settings.model_dump(mode="json"),
            "answers_digest": manifests.digest(answers),
            "records_digest": manifests.digest(records),
        },
    }
    manifests.write_text(records_beside(scores), "".join(_line(row) + "\n" for row in rows))
    manifests.write_text(scores, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def records_beside(scores: Path) -> Path:
    """The file with one row per record that belongs to a scores file."""
    return Path(scores).with_suffix(".records.jsonl")


def read_answers(path: Path, expected: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Answer]]:
    """Read an answers file: {record id: {variant: Answer}}, exactly the `expected` {record id: variants}.

    Raises RecordError naming the answers that are missing, doubled, or belong to no prompt of the benchmark.
    """
    found: dict[str, dict[str, Answer]] = {key: {} for key in expected}
    doubled, extra = [], []
    for number, line in enumerate(_lines(path), start=1):
        try:
            answer = Answer.model_validate_json(line)
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: not an answer ({error}). Generate the answers again.") from None
        if answer.variant not in expected.get(answer.id, ()):
            extra.append((answer.id, answer.variant))
        elif answer.variant in found[answer.id]:
            doubled.append((answer.id, answer.variant))
        else:
            found[answer.id][answer.variant] = answer
    missing = [(key, v) for key, variants in expected.items() for v in variants if v not in found[key]]
    problems = [
        f"{len(pairs)} {what}: {_shown(pairs)}"
        for what, pairs in (
            ("missing", missing),
            ("given twice", doubled),
            ("that no prompt of the benchmark asks for", extra),
        )
        if pairs
    ]
    if problems:
        raise RecordError(
            f"{path}: the answers do not match the records; answers {'; '.join(problems)}. "
            "They were made from other data or settings, or cut off: delete the file and generate it again."
        )
    return found


def metric(rows: Iterable[Row], name: str, higher_is_better: bool) -> Metric:
    """Average the column `name` over the rows where it is not null; Wilson's 95 % interval if it is a rate."""
    from bulwark.statistics import mean_and_error, mean_interval

    values = [float(row[name]) for row in rows if row[name] is not None]
    value, stderr = mean_and_error(values)
    interval = mean_interval(values)
    return Metric(
        value=value,
        stderr=stderr,
        interval=list(interval) if interval else None,
        n=len(values),
        higher_is_better=higher_is_better,
    )


def metrics(rows: Sequence[Row], directions: Mapping[str, bool]) -> dict[str, Metric]:
    """`metric` for each of {metric: whether higher is better}."""
    return {name: metric(rows, name, higher) for name, higher in directions.items()}


def grouped(
    rows: Sequence[Row], key: Callable[[Row], Hashable], directions: Mapping[str, bool]
) -> dict[str, dict[str, Metric]]:
    """`metrics` of each group of rows that `key` tells apart, groups sorted by name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(key(row)), []).append(row)
    return {group: metrics(groups[group], directions) for group in sorted(groups)}


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a response may hold U+2028 and its like, which end no line of JSON.
        return [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not valid UTF-8 ({error}). Generate the answers again.") from None


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _shown(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f'"{key}" ({variant})' for key, variant in pairs[:5]) + (" …" if len(pairs) > 5 else "")
