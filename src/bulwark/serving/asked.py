"""What a client asks for: the body of a chat completion, checked and closed, and errors as OpenAI writes them.

A parameter that is unknown, or known and not supported, is refused by its name: nothing that would change the answer is
left out silently. Parameters that only name or file a request (`user`, `metadata` …) are taken and not used.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bulwark.errors import nearest

MOST_STOPS = 16
_UNUSED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}


class Refused(Exception):
    """A request that is not answered. status: of HTTP. param: the field to blame. code: OpenAI's word for it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Part):
    """include_usage: a last piece with the numbers of tokens. include_obfuscation is taken and not used."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Chat(_Part):
    """The body of a chat completion. messages and tools are read by `turns` and `tools`."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # Known, and supported at these values alone.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _stops(self) -> Chat:
        if len(self.stops) > MOST_STOPS:
            raise ValueError(f"stop: at most {MOST_STOPS} texts")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which the answer ends."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer that are asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def read(raw: bytes) -> Chat:
    """The body of a request. Raises Refused, with the field, for what is no JSON or not asked for in this way."""
    try:
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise Refused(f"The body is no JSON object ({error}).") from None
    given = {name: value for name, value in body.items() if name not in _UNUSED and value is not None}
    try:
        return Chat.model_validate_json(json.dumps(given))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]] or ["stop"]
        if first["type"] == "json_invalid":  # half of a character
            raise Refused(f"The body holds what is no text ({first['msg']}).") from None
        if first["type"] == "extra_forbidden":
            said = f'The parameter "{path[0]}" is unknown or not supported.{nearest(path[0], Chat.model_fields)}'
            raise Refused(said, path[0], "unsupported_parameter") from None
        if first["type"] == "missing":
            raise Refused(f'The parameter "{path[0]}" is missing.', path[0], "missing_required_parameter") from None
        raise Refused(f'The parameter "{path[0]}" is not supported so: {first["msg"]}.', path[0]) from None
