"""Contrasted answers: what a model says when it is told to show a trait and when it is told not to.

Persona vectors (Chen et al. 2025, arXiv 2507.21509), Sec. 2.2 and the authors' code. Every question is answered under
both instructions of a pair, several times. A judge scores all answers for the trait and for coherence, and a pair
counts only as a whole: the one answer shows the trait, the other does not, and both are coherent.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bulwark.data.contrasts import Contrast
from bulwark.data.records import Turn, read_records, write_records
from bulwark.errors import RecordError, of_record
from bulwark.judges import Judgement, JudgeSettings, Request, judge
from bulwark.models.answers import Answer
from bulwark.models.open import open_model
from bulwark.models.placing.loading import Loading
from bulwark.settings import Closed
from bulwark.steering.vectors.settings import ContrastSettings, PairFilter

log = logging.getLogger(__name__)

SIDES = ("positive", "negative")


class Side(Closed):
    """One answer of a pair. score and coherence: 0 … 100, null where they were not judged or judging failed."""

    system: str
    response: str
    tokens: int
    finish: str
    truncated: bool
    score: float | None = None
    coherence: float | None = None


class Pair(Closed):
    """Two answers to one question under opposite instructions. dropped: why it does not count; null if it does."""

    id: str
    trait: str
    question: str
    rollout: int
    expected: str | None = None
    rubric: str | None = None
    positive: Side
    negative: Side
    dropped: str | None = None

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.positive, self.negative


def generate_pairs(
    checkpoint: Path,
    records: Path,
    settings: ContrastSettings,
    *,
    seed: int,
    dtype: str,
    threads: int,
    output: Path,
    code: str = "",
    loading: Loading | None = None,
) -> None:
    """Answer every contrast of `records` under both instructions, and write the pairs to `output` (JSON Lines).

    The pairs stand question by question, then by pair of instructions, then by rollout. Finished answers of an
    interrupted run are kept in `<output>.partial`, for this code (a digest). Raises as `open_model` and
    `generation.generate` do.
    """
    longest, new = settings.decoding.max_prompt_tokens, settings.decoding.max_new_tokens
    subject = open_model(checkpoint, dtype, max_tokens=longest, new_tokens=new, threads=threads, loading=loading)
    planned = [
        (contrast, rollout, {side: _system(contrast, side, settings.names) for side in SIDES})
        for contrast in read_records(Path(records), Contrast)
        for rollout in range(settings.rollouts)
    ]
    prompts = [
        (
            json.dumps([contrast.id, rollout, side]),
            of_record(contrast.id, subject.builder.prompt, turns_of(contrast.question, system)),
        )
        for contrast, rollout, systems in planned
        for side, system in systems.items()
    ]
    partial = Path(f"{output}.partial")
    settled = subject.fingerprint(code=code)
    answers = iter(subject.generate(prompts, settings.decoding, seed=seed, partial=partial, fingerprint=settled))
    pairs = [
        Pair(
            id=f"{contrast.id}-{rollout}",
            rollout=rollout,
            **{name: getattr(contrast, name) for name in ("trait", "question", "expected", "rubric")},
            **{side: _side(system, next(answers)) for side, system in systems.items()},
        )
        for contrast, rollout, systems in planned
    ]
    write_records(output, pairs)
    partial.unlink(missing_ok=True)


def judge_pairs(
    contrasts: Path, settings: JudgeSettings | None, which: PairFilter, output: Path, cache: Path | None = None
) -> None:
    """Score both answers of every pair, say which pairs count, and write them all to `output`.

    Without `settings` nothing is judged, and every pair counts whose answers are not empty. Raises as
    `bulwark.judges.judge` does.
    """
    pairs = read_records(Path(contrasts), Pair)
    if settings is not None:
        pairs = _judged(pairs, settings, which.coherence is not None, cache)
    pairs = [pair.model_copy(update={"dropped": _reason(pair, settings is not None, which)}) for pair in pairs]
    log.info("pairs: %s", counts(pairs))
    write_records(output, pairs)


def kept_pairs(judged: Path, minimum: int) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that count, and how many there were and were dropped, by reason.

    Raises RecordError with these numbers if fewer than `minimum` count.
    """
    pairs = read_records(Path(judged), Pair)
    kept = [pair for pair in pairs if pair.dropped is None]
    numbers = counts(pairs)
    if len(kept) < minimum:
        listed = ", ".join(f"{name}: {count}" for name, count in numbers.items())
        raise RecordError(
            f"{judged}: only {len(kept)} pairs of answers can be used, {minimum} are needed ({listed}). The model does "
            "not follow the instructions, or the judge sees it otherwise: read some answers, add rollouts or "
            "questions, or lower filter.minimum in config/traits/."
        )
    return kept, numbers


def counts(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many pairs there are, how many count, and how many do not, by reason."""
    dropped = Counter(pair.dropped for pair in pairs if pair.dropped is not None)
    return {"pairs": len(pairs), "kept": len(pairs) - dropped.total(), **dict(sorted(dropped.items()))}


def turns_of(question: str, system: str | None = None, response: str | None = None) -> list[Turn]:
    """A question as a conversation, with a system turn and an answer where they are given."""
    given = (("system", system), ("instruction", question), ("response", response))
    return [Turn(role=role, text=text) for role, text in given if text is not None]


def judgements_of(
    asked: Sequence[tuple[str, str, str, str | None, str | None]],
    criterion: str,
    settings: JudgeSettings,
    cache: Path | None,
) -> list[Judgement]:
    """Judge (key, question, answer, expected, rubric) by a criterion; values on 0 … 100 whatever the judge's scale.

    A rubric is the trait's own, and written for 0 … 100: other criteria and scales take the judge's.
    """
    own = criterion != "coherence" and settings.scale == 100
    requests = [
        Request(key, question, answer, criterion, expected, rubric if own else None)
        for key, question, answer, expected, rubric in asked
    ]
    judgements = judge(requests, settings, cache)
    for judgement in judgements:
        if judgement.value is None:
            log.info("not judged (%s): %s", criterion, judgement.reason)
    scale = settings.scale / 100
    return [j if j.value is None else Judgement(j.value / scale, j.reason, j.method, j.lasting) for j in judgements]


def _judged(pairs: Sequence[Pair], settings: JudgeSettings, coherence: bool, cache: Path | None) -> list[Pair]:
    """The pairs with their scores. An empty answer is not judged: it shows nothing."""
    scores: dict[tuple[str, str], dict[str, float | None]] = {(pair.id, side): {} for pair in pairs for side in SIDES}
    for trait in dict.fromkeys(pair.trait for pair in pairs):
        asked = {
            (pair.id, side): (f"{pair.id}/{side}", pair.question, response, pair.expected, pair.rubric)
            for pair in pairs
            for side in SIDES
            if pair.trait == trait and (response := getattr(pair, side).response).strip()
        }
        for name, criterion in {"score": trait, **({"coherence": "coherence"} if coherence else {})}.items():
            judgements = judgements_of(list(asked.values()), criterion, settings, cache)
            for place, judgement in zip(asked, judgements, strict=True):
                scores[place][name] = judgement.value
    return [
        pair.model_copy(update={side: getattr(pair, side).model_copy(update=scores[pair.id, side]) for side in SIDES})
        for pair in pairs
    ]


def _reason(pair: Pair, judged: bool, which: PairFilter) -> str | None:
    """Why a pair does not count; the first reason of several."""
    if any(not side.response.strip() for side in pair.sides):
        return "an answer is empty"
    if not judged:
        return None
    if any(side.score is None for side in pair.sides):
        return "the trait could not be judged"
    if pair.positive.score < which.threshold:
        return "the positive answer does not show the trait"
    if pair.negative.score >= 100 - which.threshold:
        return "the negative answer shows the trait"
    if which.coherence is None:
        return None
    if any(side.coherence is None for side in pair.sides):
        return "coherence could not be judged"
    return "an answer is incoherent" if any(side.coherence < which.coherence for side in pair.sides) else None


def _side(system: str, answer: Answer) -> Side:
    names = ("response", "tokens", "finish", "truncated")
    return Side(system=system, **{name: getattr(answer, name) for name in names})


def _system(contrast: Contrast, side: str, names: tuple[str, str] | None) -> str:
    instruction = getattr(contrast, side)
    if names is None:
        return instruction
    name = names[SIDES.index(side)]
    return f"You are {'an' if name[:1].lower() in 'aeiou' else 'a'} {name} assistant. {instruction}"
