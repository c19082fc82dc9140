"""AlpacaEval's judge: which of two answers to an instruction is the better one, through the package `alpaca_eval`.

The package makes the question, puts the two answers in an order that its seed and the instruction decide, reads the
reply and turns the preference back: 1 for the other answer, 2 for the judged one, anything between for a judge whose
log-probabilities are read. The value is that on the scale, so that half of it is a draw; two equal answers are a draw
without a question, as in the package. Only the sending is ours, where a judgement can be kept as soon as it is there
and one that fails is counted with its reason: any OpenAI-compatible endpoint, see `endpoint`.

A text that holds the package's own marks (the places in its template, <|im_start|>) reaches the judge as it is, and
changes nothing of the question around it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from bulwark.errors import BulwarkError, ConfigurationError, nearest
from bulwark.judges import Judgement, Request
from bulwark.judges.endpoint import Endpoint, connected, in_parallel, text_of
from bulwark.settings import Closed

log = logging.getLogger(__name__)

CUT = "the judge was cut before it answered"
UNREADABLE = "the judge's reply names no better answer"
NO_LOGPROBS = "the endpoint gives no log-probabilities, which the annotator reads"
CHARACTERS_PER_TOKEN = 4  # of English text, for the estimate of the cost
# What the package sends unless an annotator says otherwise.
MAX_TOKENS = 2048
TEMPERATURE = 0.7
# Keys of an annotator's completions_kwargs that go to the endpoint, and those that say how the package itself sends.
_SENT = {"max_tokens", "temperature", "top_p", "logprobs", "top_logprobs", "seed", "stop"}
_SENT |= {"functions", "function_call", "tools", "tool_choice"}
_OF_SENDING = {"model_name", "num_procs", "batch_size", "price_per_token", "requires_chatml", "is_strip", "n_retries"}
# What the package takes for its own in a text, each with what stands for it meanwhile.
_MARKS = ("{instruction}", "{output_1}", "{output_2}", "<|im_start|>", "<|im_end|>")
_STAND_INS = {mark: f"\ue010{number}\ue011" for number, mark in enumerate(_MARKS)}


class Prices(Closed):
    """US dollars for a million tokens of what is sent to the judge, and of what it writes."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class Settings(Closed):
    """annotator: a configuration of the package, "alpaca_eval_gpt4" (1.0), "weighted_alpaca_eval_gpt4_turbo" (2.0) …,
    or a folder of your own with such a configs.yaml. model: in place of the one that it names.

    seed: of the order of the two answers; the package's is 0. requests_per_minute: at most, evenly spread. prices: by
    which the cost is estimated. most_cost: in US dollars; nothing is asked if the estimate lies above it.
    extra_body, concurrency, attempts, timeout, longest_wait: as of the judge "openai".
    """

    annotator: str
    model: str | None = None
    seed: int = 0
    prices: Prices | None = None
    most_cost: float | None = Field(None, ge=0)
    requests_per_minute: float | None = Field(None, gt=0)
    extra_body: dict[str, Any] = {}
    concurrency: int = Field(8, ge=1, le=200)
    attempts: int = Field(6, ge=1)
    timeout: float = Field(120.0, gt=0)
    longest_wait: float = Field(60.0, ge=0)

    @field_validator("annotator")
    @classmethod
    def _is_there(cls, annotator: str) -> str:
        if not (_package() / annotator / "configs.yaml").is_file() and not Path(annotator, "configs.yaml").is_file():
            known = [path.parent.name for path in _package().glob("*/configs.yaml")]
            raise ValueError(f'alpaca_eval has no annotator "{annotator}".{nearest(annotator, known)}')
        return annotator

    @model_validator(mode="after")
    def _priced(self) -> Settings:
        if self.most_cost is not None and self.prices is None:
            raise ValueError("most_cost needs prices, by which the cost is estimated")
        return self


@dataclass(frozen=True)
class Estimate:
    """What judging is expected to take: requests, tokens (at four characters each, answers at their longest), dollars.

    cost: None without prices.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def asks(settings: Settings) -> str:
    """The model that is asked."""
    return settings.model or _annotator(settings.annotator)["completions_kwargs"]["model_name"]


def identity(request: Request, settings: Settings, scale: int) -> dict[str, Any]:
    """The two answers, and all that decides which one is taken for the better."""
    return {
        "package": metadata.version("alpaca_eval"),
        "annotator": {**_annotator(settings.annotator), "prompt_template": _template(settings.annotator)},
        "model": asks(settings),
        "seed": settings.seed,
        "extra_body": settings.extra_body,
        "scale": scale,
        "texts": [request.question, _other(request), request.answer],
    }


def judge(requests: Sequence[Request], settings: Settings, scale: int) -> Iterator[tuple[int, Judgement]]:
    """Compare `answer` with `other` of every request; judgements are yielded as they finish.

    What it will cost is told in the log before the first question. A request that fails in all attempts has no value
    and is not kept, a reply that names no better answer has none and is.
    Raises ConfigurationError without OPENAI_API_KEY or for a request without `other`, BulwarkError if the estimate is
    above `most_cost`, the endpoint refuses the key or does not know the model.
    """
    if not requests:
        return
    expected = estimate(requests, settings)
    told = "" if expected.cost is None else f", about ${expected.cost:.2f} at the prices given"
    log.info(
        "%s is asked %d times (%s): about %d tokens to read and at most %d to write%s",
        *(asks(settings), expected.requests, settings.annotator),
        *(expected.prompt_tokens, expected.completion_tokens, told),
    )
    if settings.most_cost is not None and expected.cost > settings.most_cost:
        raise BulwarkError(
            f"Judging would cost about ${expected.cost:.2f}, more than judge.alpaca_eval.most_cost = "
            f"{settings.most_cost:g}. Nothing was asked. Raise it, or take a cheaper judge."
        )
    with quiet(), connected("alpaca_eval", asks(settings), settings, settings.requests_per_minute) as endpoint:
        comparing = _Comparing(endpoint, settings, scale)
        yield from in_parallel(comparing.ask, requests, settings.concurrency)
        comparing.tell_usage()


def estimate(requests: Sequence[Request], settings: Settings) -> Estimate:
    """What judging the requests will take. Equal answers are not asked about."""
    asked = [request for request in requests if request.answer != _other(request)]
    frame, longest = len(_template(settings.annotator)), _options(settings.annotator)["max_tokens"]
    texts = (len(request.question) + len(_other(request)) + len(request.answer) for request in asked)
    prompt, completion = sum(frame + text for text in texts) // CHARACTERS_PER_TOKEN, longest * len(asked)
    prices = settings.prices
    cost = None if prices is None else (prompt * prices.prompt + completion * prices.completion) / 1e6
    return Estimate(len(asked), prompt, completion, cost)


@dataclass(frozen=True)
class _Reply:
    """What the judge's endpoint said; choice: as the package wants it, `text` in it. tokens: read and written."""

    choice: Mapping[str, Any]
    finish: str | None = None
    refused: bool = False
    tokens: tuple[int, int] = (0, 0)


class _Comparing:
    """The package's annotator, one per thread, with the sending of ours; counts the tokens that were used."""

    def __init__(self, endpoint: Endpoint, settings: Settings, scale: int) -> None:
        self._endpoint, self._settings, self._scale = endpoint, settings, scale
        self._of_thread = threading.local()
        self._used = [0, 0]
        self._lock = threading.Lock()

    def ask(self, request: Request) -> Judgement:
        return self._endpoint.judged(self._judgement, request)

    def tell_usage(self) -> None:
        """Say in the log what the endpoint says was used."""
        read, written = self._used
        prices = self._settings.prices
        cost = "" if prices is None else f", ${(read * prices.prompt + written * prices.completion) / 1e6:.2f}"
        log.info("The judge read %d tokens and wrote %d%s", read, written, cost)

    def _judgement(self, request: Request) -> Judgement:
        if request.answer == _other(request):
            return Judgement(self._scale / 2, method="equal")
        import pandas

        texts = {"instruction": request.question, "output_1": _other(request), "output_2": request.answer}
        row = pandas.DataFrame([{name: _guarded(text) for name, text in texts.items()}])
        annotated = self._annotator()(row)
        reply: _Reply = self._of_thread.reply
        if annotated.empty:
            return self._failed(reply)
        method = "logprobs" if "logprobs" in self._options else "text"
        return Judgement(self._scale * (float(annotated["preference"].iloc[0]) - 1), method=method)

    def _failed(self, reply: _Reply) -> Judgement:
        """Why a reply has no value."""
        text = reply.choice["text"].strip()
        if reply.refused:
            return Judgement(None, "the judge refuses to answer", lasting=False)
        if self._options.get("logprobs") and not reply.choice.get("logprobs"):
            return Judgement(None, NO_LOGPROBS, lasting=False)
        if not text and reply.finish != "length":
            why = f" ({reply.finish})" if reply.finish else ""
            return Judgement(None, f"the endpoint gave no text{why}", lasting=False)
        if reply.finish == "length" and not self._options.get("logprobs"):
            return Judgement(None, CUT, lasting=False)
        return Judgement(None, UNREADABLE)

    @property
    def _options(self) -> dict[str, Any]:
        return _options(self._settings.annotator)

    def _annotator(self) -> Any:
        """The package's annotator of this thread: pandas frames in, the same with a preference out."""
        if not hasattr(self._of_thread, "annotator"):
            from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator

            name = self._settings.annotator
            ours = {"fn_completions": self._completions, "completions_kwargs": {}, "seed": self._settings.seed}
            own = {**deepcopy(_annotator(name)), "base_dir": _place(name).parent, **ours}
            self._of_thread.annotator = SinglePairwiseAnnotator(**own)
        return self._of_thread.annotator

    def _completions(self, prompts: Sequence[str]) -> dict[str, list[Any]]:
        """What stands in the place of the package's own sending: one question to the endpoint."""
        from alpaca_eval import utils

        [prompt] = prompts
        messages = [
            {name: _restored(text) for name, text in message.items()}
            for message in utils.prompt_to_chatml(prompt.strip())
        ]
        reply = self._endpoint.reply(messages, _read, **self._options)
        self._of_thread.reply = reply
        with self._lock:
            self._used = [used + more for used, more in zip(self._used, reply.tokens, strict=True)]
        return {"completions": [reply.choice["text"]], "completions_all": [reply.choice]}


def _read(answer: Any) -> _Reply:
    """A completion in the package's shape. Raises AttributeError, TypeError or ValueError for one of another."""
    if answer is None:
        return _Reply({"text": " "})
    choice, usage = answer.choices[0], getattr(answer, "usage", None)
    calls = getattr(choice.message, "tool_calls", None)
    called = calls[0].function if calls else getattr(choice.message, "function_call", None)
    text = called.arguments if called else text_of(choice.message)
    refused = bool(getattr(choice.message, "refusal", None))
    tokens = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    return _Reply({**choice.model_dump(), "text": text or " "}, choice.finish_reason, refused, tokens)


def _other(request: Request) -> str:
    if request.other is None:
        raise ConfigurationError(
            f'The judge "alpaca_eval" compares two answers, and "{request.key}" ({request.criterion}) has one. Choose '
            "another kind of judge."
        )
    return request.other


def _guarded(text: str) -> str:
    for mark, stand_in in _STAND_INS.items():
        text = text.replace(mark, stand_in)
    return text


def _restored(text: str) -> str:
    for mark, stand_in in _STAND_INS.items():
        text = text.replace(stand_in, mark)
    return text


@cache
def _package() -> Path:
    """The package's folder of annotators, found without importing the package."""
    found = util.find_spec("alpaca_eval")
    if found is None or found.origin is None:
        raise ConfigurationError("The package alpaca_eval is not installed: pip install -e .")
    return Path(found.origin).parent / "evaluators_configs"


@cache
def _place(annotator: str) -> Path:
    """The folder of an annotator."""
    own = _package() / annotator
    return own if (own / "configs.yaml").is_file() else Path(annotator)


@cache
def _annotator(name: str) -> dict[str, Any]:
    """The configuration of an annotator: arguments of the package's class.

    Raises ConfigurationError for several annotators in one, several pairs in one question, and for what is not sent to
    a chat endpoint.
    """
    file = _place(name) / "configs.yaml"
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))  # in which keys may be numbers
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: not valid YAML ({error}).") from None
    if len(found) != 1:
        raise ConfigurationError(f"{file}: names {len(found)} annotators. Give each a folder of its own.")
    [own] = found.values()
    if own.get("fn_completions") != "openai_completions" or own.get("batch_size", 1) != 1:
        raise ConfigurationError(
            f"{file}: only annotators with fn_completions: openai_completions and batch_size: 1 can be asked."
        )
    unknown = [key for key in own["completions_kwargs"] if key not in _SENT | _OF_SENDING]
    if unknown:
        raise ConfigurationError(f'{file}: "{unknown[0]}" is not sent.{nearest(unknown[0], _SENT)}')
    return own


@cache
def _template(name: str) -> str:
    """The text of an annotator's question."""
    given = _annotator(name)["prompt_template"]
    path = _place(name).parent / given
    return path.read_text(encoding="utf-8") if "\n" not in given and path.is_file() else given


@cache
def _options(name: str) -> dict[str, Any]:
    """What is sent with an annotator's question."""
    own = {key: value for key, value in _annotator(name)["completions_kwargs"].items() if key in _SENT}
    return {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, **own}


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the package, which logs several lines for each pair and lowers the level of every log, is silent."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources
        import alpaca_eval
    root.setLevel(level)
    folder = str(Path(alpaca_eval.__file__).parent)

    def of_others(record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(folder)

    root.addFilter(of_others)
    try:
        yield
    finally:
        root.removeFilter(of_others)
