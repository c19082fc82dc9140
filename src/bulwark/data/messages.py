"""Chat messages as others write them: the turns that they are, which are learned, and what of them is not read."""

from __future__ import annotations

from typing import Any

from bulwark.errors import RecordError, nearest

# The role of each sender of a chat message. To a model with two roles, what a tool returns is data.
MESSAGE_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "instruction",
    "human": "instruction",
    "assistant": "response",
    "gpt": "response",
    "model": "response",
    "data": "data",
    "input": "data",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}
# Marks beside a message's text that say whether it is learned: OpenAI's and Mistral's, Axolotl's, ms-swift's, others'.
LEARNED = ("weight", "train", "training", "trainable", "learn", "loss", "loss_mask", "loss_weight")
# What else of a message is read.
_MESSAGE = {"role", "from", "content", "value", *LEARNED}
_PIECE = {"type", "text", *LEARNED}
_LISTS = ("messages", "conversations", "conversation")


def turns_of(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The turns of a row in the format "messages". Raises RecordError, naming `place` and the message."""
    name = _list_of(row, place)
    if name is None or not isinstance(row[name], list):
        raise RecordError(
            f'{place}: the format "messages" needs a list "messages" of {{"role", "content"}}; the record has '
            f"{', '.join(row) or 'no field'}."
        )
    turns = []
    for number, message in enumerate(row[name]):
        where = f"{place}: {name}[{number}]"
        if not isinstance(message, dict):
            raise RecordError(f"{where} should be an object with role and content, not {short(message)}.")
        role = _either(message, "role", "from", where)
        if role not in MESSAGE_ROLES:
            raise RecordError(f'{where} has the unknown role "{role}".{nearest(str(role), MESSAGE_ROLES)}')
        text = _message_text(_either(message, "content", "value", where), where)
        if blank(text) and role in ("system", "developer"):
            continue
        if blank(text):
            more = ", ".join(f'"{key}"' for key in sorted(message.keys() - _MESSAGE) if _says(message[key]))
            beside = f" It has {more} instead, which cannot be used." if more else ""
            raise RecordError(f"{where} ({role}) is empty.{beside} Fill it, or remove the message.")
        turn = {"role": MESSAGE_ROLES[role], "text": text}
        turns.append(turn if _learned(message, where) else {**turn, "learn": False})
    return turns


def _learned(message: dict[str, Any], where: str) -> bool:
    """Whether a message is learned, which its marks say; one that is null says nothing."""
    said = {}
    for key in LEARNED:
        mark = message.get(key)
        if mark is not None:
            if not isinstance(mark, int | float) or mark not in (0, 1):
                raise RecordError(
                    f'{where} has "{key}": {short(mark)}. A message is learned or not: write 0, 1, true or false.'
                )
            said[key] = bool(mark)
    if len(set(said.values())) > 1:
        raise RecordError(f"{where} says both that it is learned and that it is not ({said}). Correct one.")
    return all(said.values())


def unread_of(row: dict[str, Any]) -> set[str]:
    """The keys of messages that are not read, as "messages.key"; those without a value need not be told."""
    name = next(key for key in _LISTS if row.get(key) is not None)
    unread = {f"{name}.{key}" for message in row[name] for key in message.keys() - _MESSAGE if _says(message[key])}
    contents = [content for message in row[name] if isinstance(content := message.get("content"), list)]
    pieces = [piece.items() for content in contents for piece in content]
    return unread | {f"{name}.content.{k}" for piece in pieces for k, v in piece if k not in _PIECE and _says(v)}


def _list_of(row: dict[str, Any], place: str) -> str | None:
    """The key of a row's messages. Raises RecordError if two keys hold different ones."""
    names = [key for key in _LISTS if row.get(key) is not None]
    if any(row[name] != row[names[0]] for name in names):
        raise RecordError(f"{place}: has different messages under {' and '.join(names)}. Remove all but one.")
    return names[0] if names else None


def _either(message: dict[str, Any], one: str, other: str, where: str) -> Any:
    """The value under one of two keys. Raises RecordError if they hold different ones."""
    first, second = message.get(one), message.get(other)
    if first is not None and second is not None and first != second:
        raise RecordError(f'{where} has "{one}" and "{other}", which say different things. Remove one.')
    return second if first is None else first


def _says(value: Any) -> bool:
    """Whether a value says something: 0 and false do, null and what is empty do not."""
    return value is not None and value not in ("", [], {})


def _message_text(content: Any, where: str) -> Any:
    """A message's content: text, or a list of text pieces; null is none."""
    if content is None:
        return None
    if isinstance(content, list) and all(
        isinstance(piece, dict) and piece.get("type") == "text" and isinstance(piece.get("text"), str)
        for piece in content
    ):
        for key in LEARNED:
            if any(piece.get(key) not in (None, 1) for piece in content):
                raise RecordError(
                    f'{where} has "{key}" in a piece of its content. Write it beside the role: it is one turn.'
                )
        content = "".join(piece["text"] for piece in content)
    if not isinstance(content, str):
        raise RecordError(f"{where} has content that is not text: {short(content)}. Only text can be used.")
    return content


def blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
