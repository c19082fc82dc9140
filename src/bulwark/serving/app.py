"""The HTTP side: chat completions, streamed or not, and the list of models, as OpenAI's interface has them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bulwark.errors import BulwarkError
from bulwark.prompts.builder import PromptBuilder
from bulwark.serving import asked, tools
from bulwark.serving.asked import Chat, Refused
from bulwark.serving.engine import Broken, Done, Engine, Event, Piece, Request
from bulwark.serving.turns import turns_of

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5  # at whether a client that waits is still there


class Service:
    """One model under one name. new_tokens: the longest answer where a request names no limit."""

    def __init__(self, engine: Engine, name: str, new_tokens: int) -> None:
        self._engine, self._name, self._new_tokens = engine, name, new_tokens
        self._created = int(time.time())
        model = engine.language_model
        self._builder: PromptBuilder = model.builder
        self._builder.max_tokens = None  # what is too long is refused, and nothing cut
        self._positions = model.positions
        self._fingerprint = f"bulwark-{model.builder.digest[:12]}"

    def app(self) -> Starlette:
        """The application, for an ASGI server."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
            ],
            exception_handlers={Refused: _refused, HTTPException: _no_route, Exception: _failed},
        )

    async def health(self, _: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: HttpRequest) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._described())

    async def chat(self, request: HttpRequest) -> Response:
        """One answer to a conversation."""
        wanted = asked.read(await request.body())
        self._check_name(wanted.model)
        offered = tools.offered(wanted.tools, wanted.tool_choice, wanted.parallel_tool_calls is not False)
        answer = _Answer(self._head(wanted.stream), bool(offered))
        submitted = self._submit(wanted, offered, answer.tell)
        if wanted.stream:
            with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            stream = answer.streamed(submitted, with_usage)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await answer.whole(submitted, request)

    def _submit(self, wanted: Chat, offered: str, tell: Callable[[Event], None]) -> Request:
        """Make the prompt and let it wait. Raises Refused for what cannot become a prompt, or is too long."""
        try:
            prompt = self._builder.prompt(turns_of(wanted.messages, offered))
        except BulwarkError as error:
            raise Refused(str(error), "messages") from None
        length = len(prompt.ids)
        room = None if self._positions is None else self._positions - length
        if room is not None and room < 1:
            raise Refused(
                f"The conversation has {length} tokens, and this model reads {self._positions}, answer included. "
                "Nothing is cut off here: shorten it.",
                "messages",
                "context_length_exceeded",
            )
        limit = wanted.limit or self._new_tokens
        temperature = wanted.temperature
        if temperature is None:  # greedy, as everything that this project measures, unless sampling is asked for
            temperature = 0.0 if wanted.top_p is None else 1.0
        request = Request(
            prompt,
            limit if room is None else min(limit, room),
            tell,
            temperature=temperature,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
            seed=random.getrandbits(48) if wanted.seed is None else wanted.seed,
            stops=wanted.stops,
        )
        try:
            self._engine.submit(request)
        except BulwarkError as error:
            raise Refused(str(error), code="overloaded", status=503) from None
        return request

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise Refused(
                f'There is no model "{name}" here, only "{self._name}".', "model", "model_not_found", status=404
            )

    def _described(self) -> dict[str, Any]:
        described = {"id": self._name, "object": "model", "created": self._created, "owned_by": "bulwark"}
        return described if self._positions is None else {**described, "max_model_len": self._positions}

    def _head(self, streamed: bool) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if streamed else "chat.completion",
            "created": int(time.time()),
            "model": self._name,
            "system_fingerprint": self._fingerprint,
        }


class _Answer:
    """An answer on its way from the engine's thread to a client. calls: whether the text may hold calls of tools."""

    def __init__(self, head: dict[str, Any], calls: bool) -> None:
        self._head, self._calls = head, calls
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Take an event of the engine."""
        with suppress(RuntimeError):  # of a server that has ended meanwhile
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def whole(self, submitted: Request, http: HttpRequest) -> Response:
        """The answer in one piece; broken off if the client goes away."""
        text = ""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), SECONDS_BETWEEN_LOOKS)
            except TimeoutError:
                if await http.is_disconnected():
                    submitted.cancel()
                    return Response(status_code=499)
                continue
            if isinstance(event, Piece):
                text += event.text
            elif isinstance(event, Broken):
                raise _refusal(event)
            else:
                message, finish = self._message(text, event)
                choice = {"index": 0, "message": {"role": "assistant", "refusal": None, **message}, "logprobs": None}
                whole = {"choices": [{**choice, "finish_reason": finish}], "usage": _usage(submitted, event)}
                return JSONResponse({**self._head, **whole})

    async def streamed(self, submitted: Request, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events. With tools on offer it comes in one piece, since calls are known in the
        end."""
        text, ended = "", False
        try:
            yield self._chunk({"role": "assistant", "content": ""}, with_usage=with_usage)
            while not ended:
                event = await self._events.get()
                if isinstance(event, Piece):
                    text += event.text
                    if not self._calls:
                        yield self._chunk({"content": event.text}, with_usage=with_usage)
                elif isinstance(event, Broken):
                    ended = True
                    yield _sse(_refusal(event).body)
                else:
                    ended = True
                    message, finish = self._message(text, event)
                    if self._calls:
                        yield self._chunk(_numbered(message), with_usage=with_usage)
                    yield self._chunk({}, finish, with_usage)
                    if with_usage:
                        yield _sse({**self._head, "choices": [], "usage": _usage(submitted, event)})
                    yield "data: [DONE]\n\n"
        finally:
            if not ended:
                submitted.cancel()

    def _message(self, text: str, done: Done) -> tuple[dict[str, Any], str]:
        """(content and calls, reason of the end)."""
        rest, calls = tools.calls_in(text) if self._calls else (text, [])
        return (
            ({"content": rest or None, "tool_calls": calls}, "tool_calls")
            if calls
            else ({"content": text}, done.finish)
        )

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, with_usage: bool = False) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _sse({**self._head, "choices": [choice], **({"usage": None} if with_usage else {})})


def _numbered(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the only piece of a stream, where calls have numbers."""
    calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls", ()))]
    return {**message, "tool_calls": calls} if calls else message


def _usage(request: Request, done: Done) -> dict[str, int]:
    prompt = len(request.prompt.ids)
    return {"prompt_tokens": prompt, "completion_tokens": done.tokens, "total_tokens": prompt + done.tokens}


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _refusal(event: Broken) -> Refused:
    """What a client is told of an answer that broke off: of a mistake in the program, no more than that."""
    said = str(event.error) if isinstance(event.error, BulwarkError) else "The server failed; its log says why."
    return Refused(said, code="server_error", status=500)


async def _refused(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status)


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}. There are /v1/chat/completions and /v1/models."
    return JSONResponse(Refused(said, code="unknown_url", status=error.status_code).body, error.status_code)


async def _failed(_: HttpRequest, error: Exception) -> Response:
    return JSONResponse(_refusal(Broken(error)).body, 500)
