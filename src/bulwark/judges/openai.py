"""A judge behind an OpenAI-compatible chat endpoint, hosted or your own (vLLM, for example).

From the first token's twenty most probable candidates (temperature 0, one token, seed 0) the value is the mean
Σ k·p(k) / Σ p(k) over those that are integers of the scale (persona vectors, arXiv 2507.21509): finer than a single
number, and nearly deterministic. There is no value when these integers hold less than a quarter of the probability, and
on 0 … 9 also when REFUSAL is more probable than the likeliest digit. An endpoint that gives no log-probabilities is
asked for text, and the value is the number that the text gives (`written`). The same is done on 0 … 100 for a judge
whose tokens are single digits (Qwen's: the first token of 85 is 8), which one request at the start finds out. A reply
that was cut before it gave a number is no judgement.

Parameters that an endpoint refuses by name (max_tokens, temperature, seed) are renamed or left out from then on, and
the log says so.

The key is taken from the environment (OPENAI_API_KEY), as is the address of an endpoint of your own
(OPENAI_BASE_URL); neither is written anywhere.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from bulwark.errors import BulwarkError, ConfigurationError, without_credentials
from bulwark.judges import Judgement, Request
from bulwark.judges.rubrics import filled, rubric_of
from bulwark.judges.written import CUT, NO_NUMBER, READING, SAYS_REFUSAL, from_text
from bulwark.settings import Closed

log = logging.getLogger(__name__)

CANDIDATES = 20  # the maximum of the interface
LEAST_MASS = 0.25  # of the probability must lie on numbers, or on the words that are awaited
NO_WORD = "none of the judge's words"
REFUSAL = "REFUSAL"
PROBE = "Write the number 57 and nothing else."
_PASSING = ("408", "429", "500", "502", "503", "504")  # codes of failures that may go away by themselves
_ROUNDING = 0.01  # by which a log-probability may lie above 0
# What to send in place of a parameter that the endpoint refuses; None leaves it out.
_INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}


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
    if not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            'The judge "openai" needs OPENAI_API_KEY in the environment (any text, if your own endpoint asks for none; '
            "its address goes into OPENAI_BASE_URL). Set it, or choose another judge: marker, classifier."
        )
    _refuse_unusable()
    import openai

    client = openai.OpenAI(max_retries=0, timeout=settings.timeout)
    endpoint = _Endpoint(client, settings, scale)
    endpoint.look_at_its_numbers()
    pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="judge")
    try:
        prompts = [_prompt(request, settings, scale) for request in requests]
        waiting = {pool.submit(endpoint.ask, prompt): index for index, prompt in enumerate(prompts)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        client.close()


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


class _Failed(Exception):
    """Something else came where a completion belongs; the text says what. passing: it may go away by itself."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class _Endpoint:
    """One endpoint, used by many threads; remembers whether it gives log-probabilities, and what it does not take."""

    def __init__(self, client: Any, settings: Settings, scale: int) -> None:
        self._client, self._settings, self._scale = client, settings, scale
        self._logprobs = settings.answers != "text"
        self._told: set[str] = set()
        self._instead: dict[str, str | None] = {}  # of parameters that it refuses

    def look_at_its_numbers(self) -> None:
        """On a scale with numbers of several digits: do without log-probabilities if a number is several tokens.

        Raises BulwarkError if the settings require log-probabilities.
        """
        import openai

        if not self._logprobs or self._scale <= 9 or self._settings.words:
            return
        try:
            first = self._reply(PROBE, max_tokens=1, logprobs=True, top_logprobs=1).first
        except (openai.APIError, _Failed):
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
        import openai

        fatal = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        try:
            return self._judgement(prompt)
        except fatal as error:
            raise BulwarkError(
                f'The judge\'s endpoint refuses to work for the model "{self._settings.model}": {_said(error)}. Check '
                "OPENAI_API_KEY, OPENAI_BASE_URL and judge.openai.model; finished judgements are kept."
            ) from error
        except _Failed as error:
            return Judgement(None, str(error), lasting=False)
        except openai.APIError as error:
            kind = _kind(error)
            if kind not in self._told:  # log the first of each kind in full, count the others
                self._told.add(kind)
                log.warning("A request to the judge failed for good: %s", _said(error))
            return Judgement(None, f"the request failed: {kind}", lasting=False)

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
            if self._settings.answers == "auto" and "logprob" in _said(error).lower():
                return None
            raise
        if not reply.candidates:
            return _withheld(reply)
        if self._settings.words:
            return from_words(reply.candidates, self._scale, self._settings.words)
        return from_logprobs(reply.candidates, self._scale)

    def _reply(self, prompt: str, **options: Any) -> _Reply:
        """The reply, after as many attempts as are needed and allowed."""
        import openai
        import tenacity

        dropped = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)

        def passing(error: BaseException) -> bool:
            if isinstance(error, _Failed):
                return error.passing
            return isinstance(error, dropped) and getattr(error, "code", None) != "insufficient_quota"

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passing),
            wait=_wait(self._settings.longest_wait),
            stop=tenacity.stop_after_attempt(self._settings.attempts),
            reraise=True,
        )
        wanted = {"temperature": 0, "seed": 0, **options}
        while True:
            sent = {self._instead.get(name, name): value for name, value in wanted.items()}
            sent.pop(None, None)
            try:
                return retrying(self._completion, prompt, sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = next((name for name in _INSTEAD if name in sent and _refuses(error, name)), None)
                if name is None:
                    raise
                self._do_without(name)

    def _completion(self, prompt: str, options: Mapping[str, Any]) -> _Reply:
        """The reply to one request, empty without any choice.

        Raises _Failed for an error object and for what cannot be read, BulwarkError for what is no chat completion.
        """
        try:
            answer = self._client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "user", "content": prompt}],
                extra_body=self._settings.extra_body or None,
                **options,
            )
            if getattr(answer, "choices", None):
                return _read(answer.choices[0])
            told = (getattr(answer, "model_extra", None) or {}).get("error")
        except (ValueError, AttributeError, TypeError, LookupError) as error:
            raise _Failed(f"an answer of another shape ({type(error).__name__})", passing=True) from error
        if told:
            code = told.get("code") if isinstance(told, Mapping) else None
            message = told.get("message") if isinstance(told, Mapping) else told
            raise _Failed(f"the endpoint says: {_short(message)}", str(code) in _PASSING)
        if getattr(answer, "choices", None) == []:
            return _Reply("")
        raise BulwarkError(
            f"OPENAI_BASE_URL, {self._client.base_url}, does not answer like a chat endpoint (often /v1 is missing at "
            f"the end): {_short(answer)}"
        )

    def _do_without(self, name: str) -> None:
        """From now on send something else, or nothing, in place of a parameter."""
        instead = _INSTEAD[name]
        if name not in self._instead:
            log.warning(
                'The judge %s does not take "%s": sent %s. %s',
                self._settings.model,
                name,
                f'as "{instead}"' if instead else "without it",
                "Its answers may differ from time to time." if name == "temperature" else "",
            )
        self._instead[name] = instead


def _refuses(error: Any, name: str) -> bool:
    """Whether an answer of status 400 or 422 is about the parameter `name`."""
    about_it = getattr(error, "param", None)
    return about_it == name if about_it in _INSTEAD else re.search(rf"\b{name}\b", _said(error)) is not None


def _read(choice: Any) -> _Reply:
    """A choice as a reply. Raises AttributeError, TypeError or ValueError for one of another shape."""
    content = choice.message.content
    if isinstance(content, list):
        pieces = [piece if isinstance(piece, str | Mapping) else dict(piece) for piece in content]
        content = "".join(piece if isinstance(piece, str) else piece.get("text") or "" for piece in pieces)
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
    refused = bool(getattr(choice.message, "refusal", None))
    reply = _Reply(_text(content or ""), getattr(choice, "finish_reason", None), refused)
    logprobs = getattr(choice, "logprobs", None)
    if not logprobs or not logprobs.content:
        return reply
    first = logprobs.content[0]
    candidates = {_text(one.token): _logprob(one.logprob) for one in first.top_logprobs or ()}
    return replace(reply, first=_text(first.token), candidates=candidates or None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value}")
    return value


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


def _said(error: Any) -> str:
    """What an endpoint says about a failed request, also where it is under `detail` only, as FastAPI writes it."""
    body = getattr(error, "body", None)
    told = body.get("message") or body.get("detail") if isinstance(body, Mapping) else body
    said = without_credentials(str(error))
    return said if not told or str(told) in str(error) else f"{said}: {_short(told)}"


def _short(thing: Any) -> str:
    """The beginning of someone else's text, on one line, without credentials."""
    return without_credentials(" ".join(str(thing).split()))[:120]


def _refuse_unusable() -> None:
    """Raise ConfigurationError for a key or an address in the environment with which no request can be sent."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        value = os.environ.get(name, "").strip()
        if not (value.isascii() and value.isprintable()):
            raise ConfigurationError(
                f"{name} holds a character that cannot be sent (beyond ASCII, or the end of a line). Copy it again."
            )
    address = os.environ.get("OPENAI_BASE_URL", "").strip()
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port
        usable = False
    if address and (not usable or re.search(r"\s", address)):
        raise ConfigurationError(
            "OPENAI_BASE_URL is no address of an endpoint. It must be like http://localhost:8000/v1, with http:// or "
            'https://; in a password write "/" as %2F, "@" as %40, ":" as %3A, "#" as %23, "?" as %3F.'
        )


def _wait(longest: float) -> Any:
    """Seconds to wait: what the endpoint asks for (Retry-After), else doubling, with jitter; at most `longest`."""
    import tenacity

    growing = tenacity.wait_exponential_jitter(initial=min(1.0, longest), max=longest)

    def seconds(state: Any) -> float:
        response = getattr(state.outcome.exception(), "response", None)
        asked = response.headers.get("retry-after", "") if response is not None else ""
        return min(float(asked), longest) if re.fullmatch(r"\d+(\.\d+)?", asked) else growing(state)

    return seconds


def _kind(error: Exception) -> str:
    """The kind of failure, without the texts that differ from request to request."""
    status = getattr(error, "status_code", None)
    return type(error).__name__ + (f" (HTTP {status})" if status else "")
