"""Requests to an OpenAI-compatible chat endpoint, as the judges that speak to one send them.

Passing faults (a lost connection, too many requests, an overloaded server) are tried again, after as long as the
endpoint asks for or with growing pauses. A request that fails for good becomes a judgement without a value, which is
counted and not kept; a key that is refused or a model that is not known ends the judging. Parameters that an endpoint
refuses by name (max_tokens, temperature, seed) are renamed or left out from then on, and the log says so.

The key is taken from the environment (OPENAI_API_KEY), as is the address of an endpoint of your own
(OPENAI_BASE_URL); neither is written anywhere.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from bulwark.errors import BulwarkError, ConfigurationError, without_credentials
from bulwark.judges import Judgement

log = logging.getLogger(__name__)

_PASSING = ("408", "429", "500", "502", "503", "504")  # codes of failures that may go away by themselves
# What to send in place of a parameter that the endpoint refuses; None leaves it out.
_INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}

Read = TypeVar("Read")
Asked = TypeVar("Asked")


class Failed(Exception):
    """Something else came where a completion belongs; the text says what. passing: it may go away by itself."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class Connection(Protocol):
    """What the settings of a judge say of its endpoint; `judges.openai.Settings` explains them."""

    extra_body: dict[str, Any]
    concurrency: int
    attempts: int
    timeout: float
    longest_wait: float


@contextmanager
def connected(kind: str, model: str, settings: Connection, per_minute: float | None = None) -> Iterator[Endpoint]:
    """An endpoint, closed in the end. kind: the judge's, for messages. per_minute: the most requests sent in a minute.

    Raises ConfigurationError if OPENAI_API_KEY is not set or nothing can be sent with it.
    """
    if not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            f'The judge "{kind}" needs OPENAI_API_KEY in the environment (any text, if your own endpoint asks for '
            "none; its address goes into OPENAI_BASE_URL). Set it, or choose another judge: marker, classifier."
        )
    _refuse_unusable()
    import openai

    client = openai.OpenAI(max_retries=0, timeout=settings.timeout)
    try:
        yield Endpoint(client, kind, model, settings, per_minute)
    finally:
        client.close()


def in_parallel(
    ask: Callable[[Asked], Judgement], asked: Sequence[Asked], concurrency: int
) -> Iterator[tuple[int, Judgement]]:
    """Yield (index, judgement) as they finish; `concurrency` are asked at once."""
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="judge")
    try:
        waiting = {pool.submit(ask, one): index for index, one in enumerate(asked)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Endpoint:
    """One endpoint, used by many threads; remembers which parameters it does not take."""

    def __init__(self, client: Any, kind: str, model: str, settings: Connection, per_minute: float | None) -> None:
        self._client, self._kind, self._model, self._settings = client, kind, model, settings
        self._pace = Pace(per_minute)
        self._told: set[str] = set()
        self._instead: dict[str, str | None] = {}  # of parameters that it refuses

    def judged(self, judge: Callable[..., Judgement], *arguments: Any) -> Judgement:
        """What `judge` says; a request of its that failed for good is a judgement without a value.

        Raises BulwarkError if the endpoint refuses the key or does not know the model.
        """
        import openai

        fatal = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        try:
            return judge(*arguments)
        except fatal as error:
            raise BulwarkError(
                f'The judge\'s endpoint refuses to work for the model "{self._model}": {said_by(error)}. Check '
                f"OPENAI_API_KEY, OPENAI_BASE_URL and judge.{self._kind}.model; finished judgements are kept."
            ) from error
        except Failed as error:
            return Judgement(None, str(error), lasting=False)
        except openai.APIError as error:
            kind = _kind(error)
            if kind not in self._told:  # log the first of each kind in full, count the others
                self._told.add(kind)
                log.warning("A request to the judge failed for good: %s", said_by(error))
            return Judgement(None, f"the request failed: {kind}", lasting=False)

    def reply(self, messages: Sequence[Mapping[str, Any]], read: Callable[[Any], Read], **options: Any) -> Read:
        """What `read` makes of the completion (None: one without choices), after as many attempts as are allowed.

        read: raises ValueError, AttributeError, TypeError or LookupError for a completion of another shape.
        """
        import openai
        import tenacity

        dropped = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)

        def passing(error: BaseException) -> bool:
            if isinstance(error, Failed):
                return error.passing
            return isinstance(error, dropped) and getattr(error, "code", None) != "insufficient_quota"

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passing),
            wait=_wait(self._settings.longest_wait),
            stop=tenacity.stop_after_attempt(self._settings.attempts),
            reraise=True,
        )
        while True:
            sent = {self._instead.get(name, name): value for name, value in options.items()}
            sent.pop(None, None)
            try:
                return retrying(self._completion, messages, read, sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = next((name for name in _INSTEAD if name in sent and _refuses(error, name)), None)
                if name is None:
                    raise
                self._do_without(name)

    def _completion(
        self, messages: Sequence[Mapping[str, Any]], read: Callable[[Any], Read], options: Mapping[str, Any]
    ) -> Read:
        """Raises Failed for an error object and for what cannot be read, BulwarkError for what is no completion."""
        self._pace.wait()
        try:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=list(messages),
                extra_body=self._settings.extra_body or None,
                **options,
            )
            if getattr(answer, "choices", None):
                return read(answer)
            told = (getattr(answer, "model_extra", None) or {}).get("error")
        except (ValueError, AttributeError, TypeError, LookupError) as error:
            raise Failed(f"an answer of another shape ({type(error).__name__})", passing=True) from error
        if told:
            code = told.get("code") if isinstance(told, Mapping) else None
            message = told.get("message") if isinstance(told, Mapping) else told
            raise Failed(f"the endpoint says: {_short(message)}", str(code) in _PASSING)
        if getattr(answer, "choices", None) == []:
            return read(None)
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
                self._model,
                name,
                f'as "{instead}"' if instead else "without it",
                "Its answers may differ from time to time." if name == "temperature" else "",
            )
        self._instead[name] = instead


class Pace:
    """Lets so many requests a minute go, evenly spread, whichever thread they come from; None lets all go at once."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be sent."""
        if not self._apart:
            return
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._apart
        time.sleep(max(0.0, start - time.monotonic()))


def text_of(message: Any) -> str:
    """The text of a completion's message. Raises TypeError for what is none."""
    content = message.content
    if isinstance(content, list):
        pieces = [piece if isinstance(piece, str | Mapping) else dict(piece) for piece in content]
        content = "".join(piece if isinstance(piece, str) else piece.get("text") or "" for piece in pieces)
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
    return plain(content or "")


def plain(value: Any) -> str:
    """The text that a value is. Raises TypeError for any other."""
    if not isinstance(value, str):
        raise TypeError(f"no text: {value}")
    return value


def said_by(error: Any) -> str:
    """What an endpoint says about a failed request, also where it is under `detail` only, as FastAPI writes it."""
    body = getattr(error, "body", None)
    told = body.get("message") or body.get("detail") if isinstance(body, Mapping) else body
    said = without_credentials(str(error))
    return said if not told or str(told) in str(error) else f"{said}: {_short(told)}"


def _refuses(error: Any, name: str) -> bool:
    """Whether an answer of status 400 or 422 is about the parameter `name`."""
    about_it = getattr(error, "param", None)
    return about_it == name if about_it in _INSTEAD else re.search(rf"\b{name}\b", said_by(error)) is not None


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
