"""A judge behind an OpenAI-compatible chat endpoint, hosted or your own (vLLM, for example).

From the first token's twenty most probable candidates (temperature 0, one token, seed 0) the value is the mean
Σ k·p(k) / Σ p(k) over those that are integers of the scale (persona vectors, arXiv 2507.21509): finer than a single
number, and nearly deterministic. There is no value when these integers hold less than a quarter of the probability, and
on 0 … 9 also when REFUSAL is more probable than the likeliest digit. An endpoint that gives no log-probabilities is
asked for text, and the value is the number that the text gives (`written`). The same is done on 0 … 100 for a judge
whose tokens are single digits (Qwen's: the first token of 85 is 8), which one request at the start finds out. A reply
that was cut before it gave a number is no judgement.

Key, address, attempts and what becomes of failed requests: `endpoint`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from bulwark.errors import BulwarkError
from bulwark.judges import Judgement, Request
from bulwark.judges.endpoint import Endpoint, Failed, connected, in_parallel, plain, said_by, text_of
from bulwark.judges.rubrics import filled, rubric_of
from bulwark.judges.written import CUT, NO_NUMBER, READING, SAYS_REFUSAL, from_text
from bulwark.settings import Closed

log = logging.getLogger(__name__)

CANDIDATES = 20  # the maximum of the interface
LEAST_MASS = 0.25  # of the probability must lie on numbers, or on the words that are awaited
NO_WORD = "none of the judge's words"
REFUSAL = "REFUSAL"
PROBE = "Write the number 57 and nothing else."
_ROUNDING = 0.01  # by which a log-probability may lie above 0


class Settings(Closed):
    """model: the endpoint's name for it; the steering paper's judge is Qwen3-235B-A22B, persona vectors' GPT-4.1-mini.

    answers: "logprobs" requires log-probabilities, "text" never uses them, "auto" uses them where there are any.
    text_tokens: the longest answer without them. words: {word: share of the scale} for a judge that answers with words,
    {"yes": 1, "no": 0}, where numbers are read otherwise; the text it is asked with then goes under `rubrics`.
    extra_body: further fields of the request, {chat_template_kwargs:
    {enable_thinking: false}} for Qwen3 under vLLM. rubrics: {criterion: text}, replacing or extending our own.
    concurrency: number of parallel requests. attempts: tries of a request that the network or the endpoint drops.
    timeout: seconds for one try; longest_wait: seconds between two.
    """

    model: str
    answers: Literal["auto", "logprobs", "text"] = "auto"
    text_tokens: int = Field(16, ge=1)
    words: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    extra_body: dict[str, Any] = {}
    rubrics: dict[str, str] = {}
    concurrency: int = Field(16, ge=1, le=200)
    attempts: int = Field(6, ge=1)
    timeout: float = Field(60.0, gt=0)
    longest_wait: float = Field(60.0, ge=0)


def asks(settings: Settings) -> str:
    """The model that is asked."""
    return settings.model


def identity(request: Request, settings: Settings, scale: int) -> dict[str, Any]:
    """The prompt and all that decides its answer; not the key, the address or the rate."""
    decides = settings.model_dump(mode="json", include={"model", "answers", "text_tokens", "extra_body"})
    reading = {} if settings.answers == "logprobs" else {"reading": READING}
    words = {"words": settings.words} if settings.words else {}
    return {**decides, **reading, **words, "scale": scale, "prompt": _prompt(request, settings, scale)}


def judge(requests: Sequence[Request], settings: Settings, scale: int) -> Iterator[tuple[int, Judgement]]:
    """Send all requests, `concurrency` at once; judgements are yielded as they finish.

    A request that fails in all attempts has no value and is not cached. Raises ConfigurationError if OPENAI_API_KEY is
    not set or nothing can be sent with it, BulwarkError if the endpoint refuses the key or does not know the model.
    """
    if not requests:
        return
    with connected("openai", settings.model, settings) as endpoint:
        asking = _Asking(endpoint, settings, scale)
        asking.look_at_its_numbers()
        prompts = [_prompt(request, settings, scale) for request in requests]
        yield from in_parallel(asking.ask, prompts, settings.concurrency)


def from_logprobs(candidates: Mapping[str, float | None], scale: int) -> Judgement:
    """The judgement from {token: log-probability} of the first token's candidates; one without (None) has no mass.

    Raises nothing: if there is no value, the judgement has a reason.
    """
    masses: dict[int, float] = {}
    refusal = 0.0
    for token, logprob in candidates.items():
        text, mass = token.strip(), 0.0 if logprob is None else math.exp(logprob)
        if re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= scale:
            masses[int(text)] = masses.get(int(text), 0.0) + mass
        elif text and REFUSAL.startswith(text.upper()):
            refusal += mass
    if scale == 9 and refusal > max(masses.values(), default=0.0):
        return Judgement(None, SAYS_REFUSAL, "logprobs")
    total = sum(masses.values())
    if total < LEAST_MASS:
        reason = SAYS_REFUSAL if refusal > total else NO_NUMBER
        return Judgement(None, reason, "logprobs")
    return Judgement(sum(value * mass for value, mass in masses.items()) / total, None, "logprobs")


def from_words(candidates: Mapping[str, float | None], scale: int, words: Mapping[str, float]) -> Judgement:
    """As `from_logprobs`, of a judge that answers with one of `words`: {word: share of the scale}, in any case."""
    shares = {word.strip().casefold(): share for word, share in words.items()}
    masses: dict[str, float] = {}
    for token, logprob in candidates.items():
        if (word := _bare(token)) in shares and logprob is not None:
            masses[word] = masses.get(word, 0.0) + math.exp(logprob)
    total = sum(masses.values())
    if total < LEAST_MASS:
        return Judgement(None, NO_WORD, "logprobs")
    return Judgement(scale * sum(shares[word] * mass for word, mass in masses.items()) / total, None, "logprobs")


def _bare(text: str) -> str:
    """The first word of a text, in lower case and without marks."""
    return next(iter(re.findall(r"\w+", text.casefold())), "")


def _prompt(request: Request, settings: Settings, scale: int) -> str:
    rubric = request.rubric or rubric_of(request.criterion, settings.rubrics)
    return filled(rubric, request.question, request.answer, scale)


@dataclass(frozen=True)
class _Reply:
    """What a completion says. first: its first token; candidates: {token: log-probability} of it; None without any."""

    text: str
    finish: str | None = None
    refused: bool = False
    first: str | None = None
    candidates: Mapping[str, float | None] | None = None


class _Asking:
    """What is asked of an endpoint by many threads; remembers whether it gives log-probabilities."""

    def __init__(self, endpoint: Endpoint, settings: Settings, scale: int) -> None:
        self._endpoint, self._settings, self._scale = endpoint, settings, scale
        self._logprobs = settings.answers != "text"

    def look_at_its_numbers(self) -> None:
        """On a scale with numbers of several digits: do without log-probabilities if a number is several tokens.

        Raises BulwarkError if the settings require log-probabilities.
        """
        import openai

        if not self._logprobs or self._scale <= 9 or self._settings.words:
            return
        try:
            first = self._reply(PROBE, max_tokens=1, logprobs=True, top_logprobs=1).first
        except (openai.APIError, Failed):
            return  # the first request will fail in the same way and report it
        if first is None or re.fullmatch(r"\d{2,}", first.strip()):
            return
        said = (
            f'The judge "{self._settings.model}" begins a number of two digits with the token "{first}", so '
            f"that log-probabilities of one token cannot be read on 0 … {self._scale}"
        )
        if self._settings.answers == "logprobs":
            raise BulwarkError(f'{said}. Take scale 9, or set judge.openai.answers to "auto" or "text".')
        log.warning("%s; values are read from text. On scale 9 they could be.", said)
        self._logprobs = False

    def ask(self, prompt: str) -> Judgement:
        return self._endpoint.judged(self._judgement, prompt)

    def _judgement(self, prompt: str) -> Judgement:
        if self._logprobs:
            judgement = self._by_logprobs(prompt)
            if judgement is not None:
                return judgement
            if self._settings.answers == "logprobs":
                raise BulwarkError(
                    f'The judge "{self._settings.model}" gives no log-probabilities, which judge.openai.answers '
                    'demands. Set it to "auto" or "text".'
                )
            if self._logprobs:
                log.warning("The judge %s gives no log-probabilities; values are read from text", self._settings.model)
            self._logprobs = False
        reply = self._reply(prompt, max_tokens=self._settings.text_tokens)
        if not self._settings.words:
            return _withheld(reply) or from_text(reply.text, self._scale, reply.finish == "length")
        said = {reply.text: 0.0}  # the one word that it says
        return _withheld(reply) or replace(from_words(said, self._scale, self._settings.words), method="text")

    def _by_logprobs(self, prompt: str) -> Judgement | None:
        """None if the endpoint gives no log-probabilities, by an error or by leaving them out."""
        import openai

        try:
            reply = self._reply(prompt, max_tokens=1, logprobs=True, top_logprobs=CANDIDATES)
        except openai.BadRequestError as error:
            if self._settings.answers == "auto" and "logprob" in said_by(error).lower():
                return None
            raise
        if not reply.candidates:
            return _withheld(reply)
        if self._settings.words:
            return from_words(reply.candidates, self._scale, self._settings.words)
        return from_logprobs(reply.candidates, self._scale)

    def _reply(self, prompt: str, **options: Any) -> _Reply:
        """The reply, empty without any choice."""
        messages = [{"role": "user", "content": prompt}]
        return self._endpoint.reply(messages, _read, **{"temperature": 0, "seed": 0, **options})


def _read(answer: Any) -> _Reply:
    """A completion as a reply. Raises AttributeError, TypeError or ValueError for one of another shape."""
    if answer is None:
        return _Reply("")
    choice = answer.choices[0]
    refused = bool(getattr(choice.message, "refusal", None))
    reply = _Reply(text_of(choice.message), getattr(choice, "finish_reason", None), refused)
    logprobs = getattr(choice, "logprobs", None)
    if not logprobs or not logprobs.content:
        return reply
    first = logprobs.content[0]
    candidates = {plain(one.token): _logprob(one.logprob) for one in first.top_logprobs or ()}
    return replace(reply, first=plain(first.token), candidates=candidates or None)


def _logprob(value: Any) -> float | None:
    """None for what has no mass. Raises ValueError or TypeError for what is no log-probability."""
    value = -math.inf if value is None else float(value)
    if math.isnan(value) or value > _ROUNDING:
        raise ValueError(f"no log-probability: {value}")
    return min(value, 0.0) if math.isfinite(value) else None


def _withheld(reply: _Reply) -> Judgement | None:
    """The failed judgement for an answer without text (after a content filter, for example); None if there is text."""
    if reply.text:
        return None
    if reply.refused:
        return Judgement(None, "the judge refuses to answer", lasting=False)
    if reply.finish == "length":
        return Judgement(None, CUT, lasting=False)
    why = f" ({reply.finish})" if reply.finish else ""
    return Judgement(None, f"the endpoint gave no text{why}", lasting=False)
