"""One model, one thread: requests that wait are answered together by the decode loop of `models.generation`.

A request brings its own limit, temperature and stops; what decides a token is the request alone, so that in float32 an
answer does not depend on who else is asking. A row that has ended, or whose client has gone, leaves its batch at the
next token. Requests that arrive meanwhile wait for the next batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bulwark.errors import BulwarkError
from bulwark.models.batching import Budget, cache_token_budget, in_batches
from bulwark.models.decoding import Decoding
from bulwark.models.generation import Sampler, decode
from bulwark.models.open import LanguageModel
from bulwark.serving.pieces import Pieces

if TYPE_CHECKING:
    from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

MOST_WAITING = 1024  # requests; more are refused
SECONDS_TO_GATHER = 0.01  # within which requests are taken for simultaneous


@dataclass(frozen=True)
class Piece:
    """More of an answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer. finish: "stop" or "length". tokens: that were generated, the stop token included."""

    finish: str
    tokens: int


@dataclass(frozen=True)
class Broken:
    """An answer that will not come, and why."""

    error: Exception


Event = Piece | Done | Broken


class Request:
    """A prompt and how it is to be answered.

    limit: the most new tokens. stops: texts before which the answer ends. decoding: greedy, or how it is sampled.
    tell: called with each event, in the engine's thread.
    """

    def __init__(
        self,
        prompt: Prompt,
        limit: int,
        tell: Callable[[Event], None],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stops: Sequence[str] = (),
    ) -> None:
        self.prompt, self.limit, self.tell = prompt, limit, tell
        self.stops, self.seed = tuple(stops), seed
        self.decoding = (
            Decoding(max_new_tokens=limit, do_sample=True, temperature=temperature, top_p=top_p)
            if temperature
            else None
        )
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True


class Engine:
    """Answers requests in a thread of its own, between `start` and `close`.

    most_rows: requests in one batch, whose tokens also have to fit into the device's memory.
    """

    def __init__(self, language_model: LanguageModel, most_rows: int = 64) -> None:
        self.language_model, self._most_rows = language_model, most_rows
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._budget: Budget | None = None
        self._closed = False
        self._unanswered: set[Request] = set()
        self._lock = threading.Lock()  # of these two, so that no request comes in unseen while the engine closes
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End: what is being answered or waits is broken off."""
        with self._lock:
            self._closed = True
            for request in self._unanswered:
                request.cancel()
        self._waiting.put(None)
        self._thread.join()
        for request in self._unanswered:  # one that is cancelled ends without a word: its client would wait for ever
            request.tell(Broken(_stopped()))

    def submit(self, request: Request) -> None:
        """Let a request wait for its batch. Raises BulwarkError if too many do, or after `close`."""
        if self._waiting.qsize() >= MOST_WAITING:
            raise BulwarkError(f"{MOST_WAITING} requests are waiting already. Try again later.")
        with self._lock:
            if self._closed:
                raise _stopped()
            self._unanswered.add(request)
        self._waiting.put(request)

    def _run(self) -> None:
        while not self._closed:
            taken = self._next()
            batch = [request for request in taken if not request.cancelled]
            try:
                self._answer(batch)
            except Exception as error:  # whatever it is, the clients are told and the next batch is answered
                log.exception("A batch of %d requests failed", len(batch))
                _break(batch, error)
            with self._lock:
                if not self._closed:  # else `close` tells them that they are broken off
                    self._unanswered.difference_update(taken)

    def _next(self) -> list[Request]:
        """The requests that are waiting, once there is one."""
        batch = [self._waiting.get()]
        until = time.monotonic() + SECONDS_TO_GATHER
        while batch[-1] is not None and len(batch) < self._most_rows:
            try:
                batch.append(self._waiting.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return [request for request in batch if request is not None]

    def _answer(self, requests: Sequence[Request]) -> None:
        """Answer them, as many at once as memory allows; one that does not fit is told so, and the others go on."""
        model = self.language_model.model
        if self._budget is None and requests:
            self._budget = Budget(cache_token_budget(model))
        rows = [_Row(request, self.language_model) for request in requests]
        while left := [row for row in rows if not row.ended]:
            batch: list[_Row] = []

            def work(places: list[int], left: list[_Row] = left) -> None:
                nonlocal batch
                batch = [left[place] for place in places]
                self._decode(batch)

            try:
                in_batches(
                    [len(row.request.prompt.ids) + row.request.limit for row in left],
                    work,
                    self._budget,
                    lambda place, left=left: f"request of {len(left[place].request.prompt.ids)} tokens",
                    "Ask for fewer tokens. ",
                )
            except BulwarkError as error:
                log.warning("%d requests failed: %s", len(batch), error)
                for row in batch:
                    row.give_up(error)

    def _decode(self, rows: Sequence[_Row]) -> None:
        """One batch through the decode loop, which is told the rows' own tokens."""
        builder = self.language_model.builder
        [end, *_] = builder.stop_ids
        for row in rows:
            row.begin()

        def choose(logits: Tensor, step: int, numbers: Tensor) -> Tensor:
            likeliest = logits.argmax(-1).tolist()
            chosen = [
                rows[number].next(logits[place : place + 1], step, likeliest[place], end)
                for place, number in enumerate(numbers.tolist())
            ]
            return torch.tensor(chosen, device=logits.device)

        decode(
            self.language_model.model,
            [row.request.prompt for row in rows],
            max_new_tokens=max(row.request.limit for row in rows),
            stop_ids=builder.stop_ids,
            pad_id=builder.pad_id,
            choose=choose,
        )


class _Row:
    """A request while it is answered."""

    def __init__(self, request: Request, language_model: LanguageModel) -> None:
        self.request, self.ended = request, False
        self._language_model = language_model
        self._pieces = Pieces(language_model.tokenizer, request.stops)
        self._tokens = 0
        self._sampler: Any = None
        self._stop_ids = frozenset(language_model.builder.stop_ids)

    def begin(self) -> None:
        """From the first token, also where memory ran out in the middle: what was told is not told again."""
        self._tokens = 0
        self._pieces.begin()
        if self.request.decoding is not None:
            device = self._language_model.model.device
            self._sampler = Sampler(self.request.decoding, [""], self.request.seed, device)

    def next(self, logits: Tensor, step: int, likeliest: int, end: int) -> int:
        """The next token of the row, whose logits are [1, vocabulary]; `end`, a stop token, if there is none."""
        if self.ended or self.request.cancelled:
            self.ended = True
            return end
        first = torch.zeros(1, dtype=torch.long, device=logits.device)
        token = likeliest if self._sampler is None else int(self._sampler(logits, step, first)[0])
        self._tokens += 1
        if token in self._stop_ids:
            return self._end("stop", end)
        text, stopped = self._pieces.add(token)
        if text:
            self.request.tell(Piece(text))
        if stopped:
            return self._end("stop", end)
        return self._end("length", end) if self._tokens >= self.request.limit else token

    def give_up(self, error: Exception) -> None:
        """Tell that there will be no (more of an) answer."""
        self.ended = True
        self.request.tell(Broken(error))

    def _end(self, finish: str, end: int) -> int:
        self.ended = True
        if rest := self._pieces.rest():
            self.request.tell(Piece(rest))
        self.request.tell(Done(finish, self._tokens))
        return end


def _break(requests: Sequence[Request], error: Exception) -> None:
    for request in requests:
        request.tell(Broken(error))


def _stopped() -> BulwarkError:
    return BulwarkError("The server was stopped.")
