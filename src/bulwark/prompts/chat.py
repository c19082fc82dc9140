"""Which characters of a rendered chat template belong to which message.

A chat template is a program that turns messages into one string. To know the origin of every character, the
template is rendered once per shape of conversation with a unique mark in place of every message; the text between the
marks is the template's own. The marks are then replaced by the real messages, and the result is compared with what the
template itself renders of them. If a template changes its messages in a way that is not understood, that is an error;
it never leads to a prompt with wrong roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from bulwark.errors import BulwarkError

DAY = datetime(2024, 7, 26)
"""The day of every prompt, at midnight."""

# Templates may insert the date or a default style of answering; a prompt must not depend on the day it is made.
# `date_string` is read by Llama's templates, many others ask the clock `strftime_now`: see `_with_fixed_clock`.
TEMPLATE_ARGUMENTS: dict[str, Any] = {"date_string": DAY.strftime("%d %b %Y"), "enable_thinking": False}

# What ASIDE's code writes for tokenizers without a chat template: system, user, then "Response:".
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}RESPONSE{{ message.content }}{{ eos_token }}"
    "{% if not loop.last %}\n{% endif %}{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Response:{% endif %}"
)

# Private-use characters: no template looks for them, trims them or changes their case. Marks stand for messages while
# the template's own text is found; nothing is ever looked for in a text that contains a user's.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")

# White space that is put beside each mark, to see what a template takes off the ends of its messages.
_WHITE = " \n\t\r\u00a0"


class PromptError(BulwarkError):
    """A conversation cannot be made into a prompt with this template and tokenizer."""


@dataclass(frozen=True)
class Part:
    """A piece of a message.

    role: its embedding role, or None where the template's rule decides. turn: the index of the turn whose own text this
    is; None for text that a template adds, of which `repeats` says whether it is that of a turn once more.
    """

    text: str
    role: str | None = None
    turn: int | None = None
    repeats: int | None = None

    @property
    def written_by(self) -> int | None:
        """The index of the turn that the words come from; None for the template's own."""
        return self.repeats if self.turn is None else self.turn


@dataclass(frozen=True)
class Message:
    """One message as the chat template sees it: `speaker` is "system", "user" or "assistant"."""

    speaker: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Skeleton:
    """A rendered shape: the template's own texts and the indices of the messages that stand between them.

    Message `order[i]` stands between `texts[i]` and `texts[i + 1]`. `trims[i]` are the characters that the template
    strips off the left and the right end of message i; None for all white space.
    """

    texts: tuple[str, ...]
    order: tuple[int, ...]
    trims: tuple[tuple[str | None, str | None], ...]


class ChatRenderer:
    """Renders messages through a tokenizer's chat template and keeps track of the origin of every part.

    tokenizer: any Hugging Face tokenizer; without a chat template the plain concatenation is used. `chat_template` is
    what is rendered.
    response_header: what the plain concatenation writes before a response ("" if the responses bring their own).
    chat_template: rendered in the place of the tokenizer's.
    Raises PromptError if it is in doubt which template is meant: it is empty, or none of several is the default.
    """

    def __init__(self, tokenizer, response_header: str = "Response: ", chat_template: str | None = None):
        self._tokenizer = tokenizer
        given = _given_template(tokenizer) if chat_template is None else chat_template
        if given is None:
            given = PLAIN_CHAT_TEMPLATE.replace("RESPONSE", response_header)
        self.chat_template = _with_fixed_clock(given)
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}
        self._in_pieces = False
        self._in_pieces = self._takes_only_pieces()
        self._takes_system = self._accepts_system()

    def prompt(self, messages: list[Message]) -> list[Part]:
        """The parts of the string that asks for a response; it ends with the assistant's header.

        The header is what stands before the response in an example (so training and generation see the same), except
        for white space before the response, which belongs to the response's first token. What a template writes only
        where it asks for an answer is left out: a thought that it opens there (DeepSeek-R1) stands in no example.
        """
        messages = self._fit(messages)
        shape = tuple(message.speaker for message in messages)
        asked, answered = self._skeleton(shape, True), self._skeleton((*shape, "assistant"), False)
        place = answered.order.index(len(messages))
        header, longer = asked.texts[-1], answered.texts[place]
        same = asked.texts[:-1] == answered.texts[:place] and asked.order == answered.order[:place]
        if same and longer.rstrip() == header.rstrip():
            return self._assemble(messages, asked, generation=True)
        stand_in = Message("assistant", (Part(_MARK.format(0)),))
        return self._assemble([*messages, stand_in], answered, generation=False, before=len(messages))

    def example(self, messages: list[Message]) -> list[Part]:
        """The parts of the string that shows a whole conversation; it ends with what follows the last response."""
        messages = self._fit(messages)
        return self._assemble(messages, self._skeleton(tuple(m.speaker for m in messages), False), generation=False)

    def closing(self) -> str:
        """The template's text after a response that ends an example."""
        return self._skeleton(("user", "assistant"), False).texts[-1]

    def between(self) -> str:
        """The template's text between a response and the next user message; "" if it takes no second exchange."""
        try:
            skeleton = self._skeleton(("user", "assistant") * 2, False)
        except PromptError:
            return ""
        return skeleton.texts[skeleton.order.index(1) + 1]

    def literals(self) -> str:
        """All text that the template itself writes into an example of one exchange."""
        shape = ("system", "user", "assistant") if self._takes_system else ("user", "assistant")
        return " ".join(self._skeleton(shape, False).texts)

    def _fit(self, messages: list[Message]) -> list[Message]:
        """Move a system message that the template would refuse or drop into the first user message."""
        if not messages or messages[0].speaker != "system" or self._takes_system:
            return messages
        system, first, *rest = messages
        return [Message(first.speaker, (*system.parts, Part("\n\n"), *first.parts)), *rest]

    def _accepts_system(self) -> bool:
        """Whether a system message is written once in prompts and in examples, wherever the template takes the rest."""
        for rest in (("user",), ("user", "assistant"), ("user", "assistant", "user"), ("user", "assistant") * 2):
            shape = ("system", *rest)
            marked = [(speaker, _MARK.format(i)) for i, speaker in enumerate(shape)]
            generation = rest[-1] == "user"
            try:
                self._render(marked[1:], generation)
            except PromptError:
                continue  # conversations of this shape are refused anyway
            try:
                if self._render(marked, generation).count(marked[0][1]) != 1:
                    return False
            except PromptError:
                return False
        return True

    def _takes_only_pieces(self) -> bool:
        """Whether the template writes a text only if it comes as a list of pieces, as those for images and texts do."""
        mark = _MARK.format(0)
        for self._in_pieces in (False, True):
            with suppress(PromptError):
                if mark in self._render([("user", mark)], True):
                    return self._in_pieces
        return False

    def _assemble(
        self, messages: list[Message], skeleton: Skeleton, generation: bool, before: int | None = None
    ) -> list[Part]:
        """The parts of the whole string, or only those before message number `before`."""
        kept = [_stripped(message, *trim) for message, trim in zip(messages, skeleton.trims, strict=True)]
        parts = [Part(skeleton.texts[0])]
        end = None
        for message, text in zip(skeleton.order, skeleton.texts[1:], strict=True):
            if message == before:
                end = len(parts)
            parts += [*kept[message].parts, Part(text)]
        ours = "".join(part.text for part in parts)
        theirs = self._render([(message.speaker, message.text) for message in messages], generation)
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours + "\0", theirs + "\1", strict=False)) if a != b)
            raise PromptError(
                f"The chat template changes the messages it is given, so their roles cannot be told apart: expected "
                f"{ours[max(0, at - 20) : at + 30]!r}, it wrote {theirs[max(0, at - 20) : at + 30]!r}. "
                "Take out what it reacts to, or give the tokenizer a simpler chat template."
            )
        return [part for part in parts[:end] if part.text]

    def _skeleton(self, shape: tuple[str, ...], generation: bool) -> Skeleton:
        key = (shape, generation)
        if key not in self._skeletons:
            marks = [_MARK.format(i) for i in range(len(shape))]
            texts, order = self._split(shape, marks, generation)
            if self._render(list(zip(shape, marks, strict=True)), generation) != _filled(texts, order):
                raise PromptError(
                    "The chat template writes something else each time it is used (a random number, or a clock of its "
                    "own), so no two prompts would be alike. Give the tokenizer a chat template without it."
                )
            gone = [["", ""] for _ in marks]
            for character in _WHITE:
                for end, contents in enumerate(([character + m for m in marks], [m + character for m in marks])):
                    spaced = self._split(shape, contents, generation)[0]
                    for place, message in enumerate(order):  # before a mark stands text `place`, behind it the next
                        if spaced[place + end] == texts[place + end]:
                            gone[message][end] += character
            trims = tuple((_stripping(left), _stripping(right)) for left, right in gone)
            self._skeletons[key] = Skeleton(texts, order, trims)
        return self._skeletons[key]

    def _split(
        self, shape: tuple[str, ...], contents: list[str], generation: bool
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The template's own texts, and the messages between them by index."""
        messages = list(zip(shape, contents, strict=True))
        rendered = self._render(messages, generation)
        pieces = _MARKS.split(rendered)
        texts, order = tuple(pieces[0::2]), tuple(int(number) for number in pieces[1::2])
        if sorted(order) != list(range(len(shape))):
            raise PromptError(
                f"The chat template leaves out or repeats a message of a conversation {' - '.join(shape)}. "
                "Give the tokenizer a chat template that writes every message once."
            )
        return texts, order

    def _render(self, messages: list[tuple[str, str]], generation: bool) -> str:
        """What the template writes. Raises PromptError if it refuses the messages, or fails in any way."""
        contents = [[{"type": "text", "text": text}] if self._in_pieces else text for _, text in messages]
        try:
            return self._tokenizer.apply_chat_template(
                [{"role": speaker, "content": held} for (speaker, _), held in zip(messages, contents, strict=True)],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=generation,
                **TEMPLATE_ARGUMENTS,
            )
        except Exception as error:  # a template is a program: it may run into anything
            shape = " - ".join(speaker for speaker, _ in messages)
            if isinstance(error, TemplateError):
                raise PromptError(f"The chat template refuses a conversation {shape}: {error}.") from error
            raise PromptError(
                f"The chat template fails on a conversation {shape} ({type(error).__name__}: {error}). "
                "Correct the template, or give the tokenizer another one."
            ) from error


def _given_template(tokenizer) -> str | None:
    """The tokenizer's chat template; None for none. Raises PromptError if it is in doubt which one is meant."""
    given = getattr(tokenizer, "chat_template", None)
    if isinstance(given, dict):  # named ones, for tools for example
        if given and "default" not in given:
            raise PromptError(
                f"The tokenizer has chat templates named {', '.join(map(repr, given))}, and none named 'default', so "
                "nobody can tell which one is meant. Name that one 'default' (in tokenizer_config.json), or save it as "
                "chat_template.jinja."
            )
        given = given.get("default")
    if given is not None and not given.strip():
        raise PromptError(
            "The tokenizer's chat template is empty, so it would write nothing. Give it one; or take the empty one out "
            "(chat_template in tokenizer_config.json, or chat_template.jinja) for the plain concatenation of the texts."
        )
    return given


def _with_fixed_clock(template: str) -> str:
    """The template with a macro that hides the clock `strftime_now`, which transformers gives to templates, by `DAY`.

    A function cannot be handed to a template; but what a fixed day makes of every directive is a table.
    """
    if "strftime_now" not in template:
        return template
    directives = [flag + letter for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ"]
    table = [("%%", "\ue002"), *((f"%{name}", DAY.strftime(f"%{name}")) for name in directives), ("\ue002", "%")]
    replaced = "".join(f" | replace({found!r}, {text!r})" for found, text in table)
    # The line break is trimmed as the first one after a block, so that the template still begins a line.
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro %}\n" + template


def _filled(texts: tuple[str, ...], order: tuple[int, ...]) -> str:
    """The template's texts with the marks between them."""
    return texts[0] + "".join(_MARK.format(message) + text for message, text in zip(order, texts[1:], strict=True))


def _stripping(gone: str) -> str | None:
    """What `str.strip` is told to strip off an end that lost these of `_WHITE`: None for all white space."""
    return None if gone == _WHITE else gone


def _stripped(message: Message, left: str | None, right: str | None) -> Message:
    parts = _strip_end(list(message.parts), lambda text: text.lstrip(left))
    parts = _strip_end(parts[::-1], lambda text: text.rstrip(right))[::-1]
    return Message(message.speaker, tuple(parts))


def _strip_end(parts: list[Part], strip: Callable[[str], str]) -> list[Part]:
    for i, part in enumerate(parts):
        text = strip(part.text)
        if text:
            return [replace(part, text=text), *parts[i + 1 :]]
    return []
