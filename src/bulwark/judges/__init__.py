"""Judges read an answer and score how strongly it shows something. One module per kind, found by its name.

A judge gets questions with answers and a criterion (a trait's name, "coherence", "safety", "refusal") and gives each
a value between 0 and the top of its scale, 9 or 100 (persona vectors, arXiv 2507.21509, judge on 0 … 100; the steering
paper, arXiv 2609.10142, on 0 … 9). A judgement that fails has a reason instead of a value; it is
counted, and no value is guessed.

A kind's module has
    Settings                                  what can be set
    judge(requests, settings, scale)          yields (index of the request, Judgement), in any order
    identity(request, settings, scale)        all that decides a judgement, as plain data; without it none is cached
    asks(settings)                            of one that needs OPENAI_API_KEY: the model that it asks

    >>> settings = JudgeSettings(kind="exact")
    >>> judge([Request("a", "2 + 2?", "4", "answer", expected="4")], settings)
    [Judgement(value=100.0, reason=None, method='exact', lasting=True)]
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from bulwark import interrupts, seals
from bulwark.errors import BulwarkError, ConfigurationError, RecordError, nearest
from bulwark.settings import Closed, find, validated

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 15.0  # between two lines of progress
_PARTS = ("__init__", "endpoint", "rubrics", "written")  # modules that are no kind of judge


@dataclass(frozen=True)
class Request:
    """One answer to judge. `key` identifies it among the requests.

    criterion: what is judged; the value rises with it ("refusal": 0 answers, the top refuses). expected: the right
    answer, for judges and criteria that need one. rubric: the whole text for a language model as judge, with
    {question}, {answer} and, if wanted, {top} in it; None takes the one of `bulwark.judges.rubrics` for the criterion.
    other: the answer that `answer` is compared with, for the criterion "preference": half of the scale is a draw.
    """

    key: str
    question: str
    answer: str
    criterion: str
    expected: str | None = None
    rubric: str | None = None
    other: str | None = None


@dataclass(frozen=True)
class Judgement:
    """A value in 0 … `JudgeSettings.scale`, or None with the reason.

    method: how the value was obtained ("logprobs", "text", else the kind). lasting: whether asking again would give the
    same; a request that the network lost is not cached.
    """

    value: float | None
    reason: str | None = None
    method: str | None = None
    lasting: bool = True


class JudgeSettings(Closed):
    """Which judge, on which scale. The settings of a kind stand under its name, so that an overlay can switch `kind`:

        judge: {kind: openai, scale: 100, openai: {model: gpt-4.1-mini-2025-04-14}}
        judge: {kind: oracle}                 # an overlay; the settings under openai are then not used

    Unknown kinds and unknown settings of any kind are errors.
    """

    model_config = ConfigDict(extra="allow")

    kind: str
    scale: Literal[9, 100] = 100

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        """Check the settings of every kind that is given, and fill in their defaults."""
        if not isinstance(given, Mapping) or not isinstance(given.get("kind"), str):
            return given  # pydantic says what is wrong
        plain = {key: value for key, value in given.items() if key in cls.model_fields}
        named = {key: value for key, value in given.items() if key not in plain}
        named.setdefault(given["kind"], {})
        for key in named:
            if key != given["kind"] and key not in kinds():
                raise ValueError(f'unknown key "{key}".{nearest(key, [*cls.model_fields, *kinds()])}')
        try:
            for kind, settings in named.items():
                own = validated(module_of(kind).Settings, settings, f"settings of the judge {kind}")
                plain[kind] = own.model_dump(mode="json")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return plain

    @property
    def own(self) -> Closed:
        """The settings of the kind in use."""
        return validated(module_of(self.kind).Settings, self.model_extra[self.kind], f"judge {self.kind}")


class Judged(Closed):
    """The settings under `scoring` of a benchmark whose answers are judged."""

    judge: JudgeSettings


def judge(requests: Sequence[Request], settings: JudgeSettings, cache: str | Path | None = None) -> list[Judgement]:
    """Judge all requests; the judgements are in the order of the requests.

    cache: a file of JSON lines to which every finished judgement is added at once, under a digest of all that decides
    it. This and later calls do not ask again for what it holds. Kinds that cost nothing do not use it.
    Raises BulwarkError if the judge cannot be reached at all or refuses the key, RecordError for a cache that is
    broken, ConfigurationError if the settings do not fit a request.
    """
    from bulwark import files

    module, own = module_of(settings.kind), settings.own
    digests: list[str | None] = [None] * len(requests)
    if hasattr(module, "identity"):
        keys = (module.identity(request, own, settings.scale) for request in requests)
        digests = [files.digest({"kind": settings.kind, **key}) for key in keys]
    kept = _kept(Path(cache)) if cache is not None and any(digests) else {}
    judgements: list[Judgement | None] = [kept.get(digest) for digest in digests]
    # Equal requests are judged once.
    asked: dict[Any, list[int]] = {}
    for index, (judgement, digest) in enumerate(zip(judgements, digests, strict=True)):
        if judgement is None:
            asked.setdefault(digest or index, []).append(index)
    groups = list(asked.values())
    if kept and len(groups) < len(requests):
        log.info("%d of %d judgements are known already", sum(j is not None for j in judgements), len(requests))
    first = [requests[indices[0]] for indices in groups]
    known = sum(judgement is not None for judgement in judgements)
    keeping = interrupts.resumable(lambda: f"{known} of {len(requests)} judgements are kept in {cache}")
    with keeping if cache is not None and any(digests) else nullcontext():
        for number, judgement in _reporting(module.judge(first, own, settings.scale), len(first)):
            digest = digests[groups[number][0]]
            for index in groups[number]:
                judgements[index] = judgement
            if cache is not None and digest is not None and judgement.lasting:
                _keep(Path(cache), digest, judgement)
                known += len(groups[number])
            interrupts.leave_if_told()
    lost = [index for index, judgement in enumerate(judgements) if judgement is None or not judgement.lasting]
    if requests and len(lost) == len(requests):
        reason = judgements[lost[0]].reason if judgements[lost[0]] else "it gave no answer"
        raise BulwarkError(
            f'The judge "{settings.kind}" judged none of {len(requests)} answers; "{requests[0].key}": {reason}. '
            "Check the endpoint and the judge's settings."
        )
    return judgements


def module_of(kind: str) -> ModuleType:
    """Import the module of a kind of judge. Raises ConfigurationError with the nearest name if there is none."""
    return importlib.import_module(f"{__name__}.{find({name: name for name in kinds()}, kind, 'kind of judge')}")


def kinds() -> list[str]:
    """The kinds of judges: the modules of this package that are none of its parts."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _PARTS)


def reported(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts for a scores file: judgements, failures with their reasons, and values by method."""
    reasons = Counter(judgement.reason for judgement in judgements if judgement.value is None)
    methods = Counter(judgement.method for judgement in judgements if judgement.value is not None)
    return {
        "judgements": len(judgements),
        "failed_judgements": sum(reasons.values()),
        **{f"failed_judgements: {reason}": count for reason, count in sorted(reasons.items())},
        **{f"judged_by_{method}": count for method, count in sorted(methods.items())},
    }


def _reporting(judgements: Iterator[tuple[int, Judgement]], total: int) -> Iterator[tuple[int, Judgement]]:
    last, failed = time.monotonic(), 0
    for done, (index, judgement) in enumerate(judgements, start=1):
        failed += judgement.value is None
        if time.monotonic() - last > PROGRESS_SECONDS or (done == total and total > 1):
            last = time.monotonic()
            log.info("%d of %d answers judged, %d judgements failed", done, total, failed)
        yield index, judgement


def _kept(cache: Path) -> dict[str, Judgement]:
    """The judgements of a cache. A last line that a killed job left unfinished is dropped."""
    if not cache.is_file():
        return {}
    whole, _, torn = cache.read_bytes().rpartition(b"\n")
    if torn:
        with cache.open("r+b") as file:
            file.truncate(len(whole) + (1 if whole else 0))
    kept = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            entry = seals.row_of(line)
            digest = entry.pop("digest")
            kept[digest] = Judgement(**entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"{cache}, line {number}: not a judgement ({error}). Remove the line and give the same command again."
            ) from None
    return kept


def _keep(cache: Path, digest: str, judgement: Judgement) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a", encoding="utf-8") as file:
        file.write(seals.signed_line({"digest": digest, **asdict(judgement)}))
