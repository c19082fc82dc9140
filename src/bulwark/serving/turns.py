"""Messages as turns with roles. The role comes from who speaks and from the type of a part, never from what is said.

| message | turn |
|---|---|
| `system`, `developer` | system at the beginning of a conversation, later an instruction |
| `user` | instruction |
| `tool`, `function` | tool, which is data to a model without that role |
| `data` | data |
| `assistant` | response; the tools that it calls are written into it (`tools`) |
| a part of type `data` in a `user` message, {type: data, text: …} or {type: data, data: …} | data |

`data` is ours: OpenAI's interface has no role for material of which nothing is an order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bulwark.data.records import MATERIAL, Turn, TurnRole
from bulwark.errors import nearest
from bulwark.serving import tools
from bulwark.serving.asked import Refused

SPEAKERS: dict[str, TurnRole] = {
    "system": "system",
    "developer": "system",
    "user": "instruction",
    "assistant": "response",
    "tool": "tool",
    "function": "tool",
    "data": "data",
}
PARTS = ("text", "data", "refusal")
# Keys of a message that are read, and those that only name or file it.
_READ = {"role", "content", "refusal", "tool_calls", "function_call"}
_UNUSED = {"name", "tool_call_id", "id", "annotations"}
SILENT = "(no answer)"  # in the place of an answer without text, which no conversation can hold
NOTHING = "(nothing)"  # likewise of a tool that returned nothing


def turns_of(messages: Sequence[Mapping[str, Any]], offered: str = "") -> list[Turn]:
    """The conversation. offered: what is said of the tools that can be called, after the client's own system messages.

    Raises Refused, naming the message, for an unknown speaker, a key that is not read, and for parts that are no text
    (pictures, sound).
    """
    turns: list[Turn] = []
    opening = True
    for number, message in enumerate(messages):
        speaker = str(message.get("role"))
        role = SPEAKERS.get(speaker)
        if role is None:
            said = f'messages[{number}] has the role "{speaker}".{nearest(speaker, SPEAKERS)}'
            raise Refused(said, f"messages[{number}].role")
        _check_keys(message, role, number)
        if opening and role != "system":
            turns += [Turn(role="system", text=offered)] if offered else []
            opening = False
        for kind, text in _said(message, role, number):
            if text.strip():
                turns.append(Turn(role="instruction" if kind == "system" and not opening else kind, text=text))
    if opening and offered:
        turns.append(Turn(role="system", text=offered))
    return turns


def _check_keys(message: Mapping[str, Any], role: TurnRole, number: int) -> None:
    """Raise Refused for a key whose value would be left out silently."""
    known = _READ | _UNUSED if role == "response" else _UNUSED | {"role", "content"}
    for key, value in message.items():
        if key not in known and value not in (None, [], {}):
            said = f'messages[{number}]: the key "{key}" is not read in the role "{message["role"]}".'
            raise Refused(f"{said}{nearest(key, known)}", f"messages[{number}].{key}")


def _said(message: Mapping[str, Any], role: TurnRole, number: int) -> Iterator[tuple[TurnRole, str]]:
    """(role, text) of what one message holds."""
    parts = list(_parts(message.get("content"), role, number))
    if role == "response":
        parts += _parts(message.get("refusal"), role, number)
        texts = [text for _, text in parts if text.strip()]
        texts += tools.written(message.get("tool_calls"), f"messages[{number}].tool_calls")
        if message.get("function_call"):  # OpenAI's earlier form, of one call
            texts += tools.written([{"function": message["function_call"]}], f"messages[{number}].function_call")
        yield "response", "\n".join(texts) or SILENT
        return
    if any(text.strip() for _, text in parts):
        yield from parts
    elif role in MATERIAL:
        yield role, NOTHING
    elif role == "instruction":
        raise Refused(f"messages[{number}] says nothing.", f"messages[{number}].content")


def _parts(content: Any, role: TurnRole, number: int) -> Iterator[tuple[TurnRole, str]]:
    where = f"messages[{number}].content"
    if content is None:
        return
    if isinstance(content, str):
        yield role, content
        return
    if not isinstance(content, list):
        raise Refused(f"{where} should be a text or a list of parts.", where)
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = _text_of(part) if kind in PARTS else None
        if text is None:
            raise Refused(
                f'{where}[{place}] is no part of the type "text" or "data" with a `text`; this model reads no other.',
                f"{where}[{place}]",
            )
        if kind == "data" and role not in ("instruction", *MATERIAL):
            raise Refused(f"{where}[{place}]: a part of the type data stands in a user's or a tool's message.", where)
        yield ("data" if kind == "data" and role == "instruction" else role), text


def _text_of(part: Mapping[str, Any]) -> str | None:
    return next((part[key] for key in ("text", str(part["type"])) if isinstance(part.get(key), str)), None)
