"""Scoring answers, the cheap half of an evaluation: answers in, a scores file and one row per record out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from bulwark import files, seals
from bulwark.errors import RecordError
from bulwark.evaluation.benchmark import Benchmark
from bulwark.evaluation.metrics import identity_of, without_model, write_scores
from bulwark.evaluation.statistics import FACT
from bulwark.models.answers import Answer

if TYPE_CHECKING:
    from bulwark.judges import Judgement


_LINE = TypeAdapter(Answer)


def score_file(
    benchmark: Benchmark,
    *,
    answers: Path,
    records: Path,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any] | Path,
    scores: Path,
    checkpoint: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Score the answers of one checkpoint: write `scores` (JSON) and, beside it, the rows (`records_beside(scores)`).

    identity: benchmark, model, recipe, seed. provenance: how the answers were made, or the file that says so; the
    resolved settings and the digests of answers and records are added. checkpoint: the manifest of the one that was
    to answer, if it is still there. inputs: the further files that the benchmark reads, by the names in `inputs()` of
    its settings under `scoring`. Raises RecordError if answers are missing, doubled, of no record, or were made from
    other records or by another checkpoint. Of a trial that diverged, which answered nothing, every metric is null.
    """
    answers, records, scores = Path(answers), Path(records), Path(scores)
    if isinstance(provenance, Path):
        provenance = json.loads(provenance.read_text(encoding="utf-8"))
    _refuse_foreign(answers, provenance, records, checkpoint)
    if "diverged" in provenance:
        return write_scores(scores, {**identity_of(identity), **without_model(benchmark.metrics, provenance)}, [])
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    if benchmark.read:
        benchmark.read(inputs)
    known = benchmark.load(records)
    given = read_answers(answers, {record.id: benchmark.variants(record) for record in known})
    responses = {record.id: {v: a.response for v, a in given[record.id].items()} for record in known}
    counts: dict[str, Any] = {}
    if benchmark.requests:
        from bulwark import judges

        judged = _judged(benchmark, known, responses, judgements_beside(scores))
        made = [benchmark.score(record, responses[record.id], judged[record.id]) for record in known]
        counts = judges.reported([judgement for of_record in judged.values() for judgement in of_record.values()])
    else:
        made = [benchmark.score(record, responses[record.id]) for record in known]
    facts = [{} if (fact := benchmark.fact(record)) is None else {FACT: fact} for record in known]
    rows = [{"id": record.id, **fact, **row} for record, fact, row in zip(known, facts, made, strict=True)]
    every = [answer for variants in given.values() for answer in variants.values()]
    result = {
        **identity_of(identity),
        "n": len(rows),
        "metrics": benchmark.aggregate(rows),
        "breakdowns": benchmark.breakdowns(rows),
        "reported": {
            "answers": len(every),
            "truncated_prompts": sum(answer.truncated for answer in every),
            "answers_at_length_limit": sum(answer.finish == "length" for answer in every),
            "empty_answers": sum(not answer.response.strip() for answer in every),
            "mean_tokens": sum(answer.tokens for answer in every) / len(every),
            **counts,
            **benchmark.reported(rows),
        },
        "provenance": {
            **provenance,
            "module": benchmark.module,
            "settings": benchmark.settings.model_dump(mode="json"),
            "answers_digest": files.digest(answers),
            "records_digest": files.digest(records),
            **({"inputs": {name: files.digest(path) for name, path in inputs.items()}} if inputs else {}),
        },
    }
    return write_scores(scores, result, rows)


def _refuse_foreign(answers: Path, provenance: Mapping[str, Any], records: Path, checkpoint: Path | None) -> None:
    """Raise RecordError if the provenance of answers names other records, or another checkpoint, than these."""
    held = {"records": (records, files.digest(records))}
    if checkpoint is not None and checkpoint.exists():
        held["checkpoint"] = (checkpoint, seals.content(checkpoint))
    for name, (path, digest) in held.items():
        if name in provenance and provenance[name] != digest:
            raise RecordError(
                f"{answers}: these answers belong to another {path} than the one that is there now (its digest is not "
                f"that in their provenance). Remove the answers and give the same command again, or restore {path} "
                "from a copy."
            )


def judgements_beside(scores: Path) -> Path:
    """The file that keeps a scores file's judgements: undeclared to the workflow, so that no rescoring removes it."""
    return Path(scores).with_suffix(".judgements.jsonl")


def read_answers(path: Path, expected: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Answer]]:
    """Read an answers file: {record id: {variant: Answer}}, exactly the `expected` {record id: variants}.

    Raises RecordError naming the answers that are missing, doubled, or belong to no prompt of the benchmark.
    """
    answers: dict[str, dict[str, Answer]] = {key: {} for key in expected}
    doubled, extra = [], []
    for number, line in enumerate(_lines(path), start=1):
        try:
            answer = _LINE.validate_json(line)
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: not an answer ({error}). Generate the answers again.") from None
        if answer.variant not in expected.get(answer.id, ()):
            extra.append((answer.id, answer.variant))
        elif answer.variant in answers[answer.id]:
            doubled.append((answer.id, answer.variant))
        else:
            answers[answer.id][answer.variant] = answer
    missing = [(key, v) for key, variants in expected.items() for v in variants if v not in answers[key]]
    wrong = {"missing": missing, "given twice": doubled, "that no prompt of the benchmark asks for": extra}
    problems = [f"{len(pairs)} {what}: {_shown(pairs)}" for what, pairs in wrong.items() if pairs]
    if problems:
        raise RecordError(
            f"{path}: the answers do not match the records; answers {'; '.join(problems)}. "
            "They were made from other data or settings, or cut off: delete the file and generate it again."
        )
    return answers


def _judged(
    benchmark: Benchmark, records: Sequence[Any], responses: Mapping[str, Mapping[str, str]], cache: Path
) -> dict[str, dict[str, Judgement]]:
    """{record id: {key: judgement}}, all judged in one go."""
    from bulwark import judges

    asked = [(record.id, request) for record in records for request in benchmark.requests(record, responses[record.id])]
    judgements = judges.judge([request for _, request in asked], benchmark.judge(), cache)
    judged: dict[str, dict[str, Judgement]] = {record.id: {} for record in records}
    for (record, request), judgement in zip(asked, judgements, strict=True):
        judged[record][request.key] = judgement
    return judged


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a response may hold U+2028 and its like, which end no line of JSON.
        return [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not valid UTF-8 ({error}). Generate the answers again.") from None


def _shown(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f'"{key}" ({variant})' for key, variant in pairs[:5]) + (" …" if len(pairs) > 5 else "")
