"""Benchmarks: one module each, found by its name. Here is what they share: metrics and the scores file.

A benchmark module has
    Settings                      what can be set; holds `decoding` where text is generated; may have `inputs()`: the
                                  files under results/ that answering reads, by name, as path templates in which
                                  `{model}`, `{recipe}`, `{parent}` (the recipe before its last step), `{seed}` stand
    Record                        the schema of its data
    METRICS                       {metric: whether higher is better}, the first being the headline
    load(path)                    the records of a data file
    prompts(record, settings)     {variant: turns}, the prompts that a checkpoint answers; or, where text is not enough,
    answers(examinee, records, settings)   one answer per record, of the variant "answer", made from an open checkpoint
                                  (`evaluation.Examinee`); what is not text stands as JSON in its `response`
    METHOD                        only with `answers`: the further modules whose code makes the answers what they are
    requests(record, responses, settings)   only if answers are judged: what is asked of the judge under `scoring.judge`
                                  of the settings, one `judges.Request` each, keys unique within a record
    score(record, responses, settings)   one flat row per record, from {variant: response}; with `requests` it takes
                                  the record's judgements, {key of the request: Judgement}, as a fourth argument
    aggregate(rows, settings)     {metric: Metric}
    breakdowns(rows, settings)    {grouping: {group: {metric: Metric}}}
    reported(rows, settings)      further numbers, without an error: lengths, say

A row has a column named after each metric: the record's own value, null where the record does not count. The metric
is the mean of the column over the records that count, which is all that standard errors and paired tests need.
A metric that is no such mean (an AUC) has no column: `aggregate` gives its error and interval itself.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict

from bulwark.errors import ConfigurationError, RecordError, nearest
from bulwark.settings import Closed, validated

if TYPE_CHECKING:
    from bulwark.judges import Judgement, JudgeSettings

Row = dict[str, Any]
ANSWER = "answer"  # the one variant of a benchmark without prompts


class Metric(TypedDict):
    """A mean over `n` records. With none, `value` is null; with fewer than two, `stderr` is. Rates lie in 0 … 1.

    higher_is_better: null for what an analysis describes, which is neither better nor worse.
    """

    value: float | None
    stderr: float | None
    interval: list[float] | None
    n: int
    higher_is_better: bool | None


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


def inputs_of(settings: Closed) -> dict[str, str]:
    """The files under results/ that answering reads beside checkpoint and records: path templates by name."""
    return settings.inputs() if hasattr(settings, "inputs") else {}


def variants_of(benchmark: ModuleType, record: Any, settings: Closed) -> list[str]:
    """The variants in which a record is answered."""
    return list(benchmark.prompts(record, settings)) if hasattr(benchmark, "prompts") else [ANSWER]


def judge_of(module: str, settings: Closed, where: str = "") -> JudgeSettings | None:
    """The judge of a benchmark; None if it has no `requests`. Raises ConfigurationError if it needs one and has none.

    Settings without `scoring` are whole enough to answer with: the workflow leaves it out there.
    """
    if not hasattr(module_of(module), "requests"):
        return None
    if settings.scoring is None:
        raise ConfigurationError(
            f'{where or f"settings of the benchmark {module}"}: the key "scoring" is missing. The module {module} is '
            "judged: write `scoring: {judge: {kind: …}}`."
        )
    return settings.scoring.judge


def answered_by(module: str) -> tuple[str, ...]:
    """The names of the further modules whose code, beside the benchmark's own, makes the answers."""
    return getattr(module_of(module), "METHOD", ())


def scored_by(module: str, settings: Closed) -> tuple[str, ...]:
    """The names of the modules whose code scores the answers: the benchmark's own and its judge's."""
    from bulwark import judges

    judge = judge_of(module, settings)
    return (f"{__name__}.{module}", *(judges.method(judge) if judge else ()))


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
    from bulwark import files, judges

    answers, records, scores = Path(answers), Path(records), Path(scores)
    benchmark = module_of(module)
    if not isinstance(settings, Closed):
        settings = validated(benchmark.Settings, settings, f"settings of the benchmark {module}")
    known = benchmark.load(records)
    expected = {record.id: variants_of(benchmark, record, settings) for record in known}
    given = read_answers(answers, expected)
    responses = {record.id: {v: a.response for v, a in given[record.id].items()} for record in known}
    if hasattr(benchmark, "requests"):
        judge = judge_of(module, settings)
        judged = _judged(benchmark, known, responses, settings, judge, judgements_beside(scores))
        made = [benchmark.score(record, responses[record.id], settings, judged[record.id]) for record in known]
        counts = judges.reported([judgement for of_record in judged.values() for judgement in of_record.values()])
    else:
        made = [benchmark.score(record, responses[record.id], settings) for record in known]
        counts = {}
    rows = [{"id": record.id, **row} for record, row in zip(known, made, strict=True)]
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
            **counts,
            **benchmark.reported(rows, settings),
        },
        "provenance": {
            **provenance,
            "module": module,
            "settings": settings.model_dump(mode="json"),
            "answers_digest": files.digest(answers),
            "records_digest": files.digest(records),
        },
    }
    files.write_text(records_beside(scores), "".join(_line(row) + "\n" for row in rows))
    files.write_text(scores, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def records_beside(scores: Path) -> Path:
    """The file with one row per record that belongs to a scores file."""
    return Path(scores).with_suffix(".records.jsonl")


def judgements_beside(scores: Path) -> Path:
    """The file that keeps a scores file's judgements: undeclared to the workflow, so that no rescoring removes it."""
    return Path(scores).with_suffix(".judgements.jsonl")


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
    from bulwark.evaluation.statistics import mean_and_error, mean_interval

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


def _judged(
    benchmark: ModuleType,
    records: Sequence[Any],
    responses: Mapping[str, Mapping[str, str]],
    settings: Closed,
    judge: JudgeSettings,
    cache: Path,
) -> dict[str, dict[str, Judgement]]:
    """{record id: {key: judgement}}, all judged in one go."""
    from bulwark import judges

    asked = [
        (record.id, request)
        for record in records
        for request in benchmark.requests(record, responses[record.id], settings)
    ]
    found = judges.judge([request for _, request in asked], judge, cache)
    judged: dict[str, dict[str, Judgement]] = {record.id: {} for record in records}
    for (record, request), judgement in zip(asked, found, strict=True):
        judged[record][request.key] = judgement
    return judged


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
