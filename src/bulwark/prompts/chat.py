"""Which characters of a rendered chat template belong to which message.

A chat template is a program that turns messages into one string. To know the origin of every character, the
template is rendered once per shape of conversation with a unique mark in place of every message; the text between the
marks is the template's own. The marks are then replaced by the real messages, and the result is compared with what the
template itself renders. If a template changes its messages in a way that is not understood, that is an error; it never
leads to a prompt with wrong roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
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


class PromptError(BulwarkError):
    """A conversation cannot be made into a prompt with this template and tokenizer."""


@dataclass(frozen=True)
class Part:
    """A piece of a message. `role` is its embedding role, or None where the template's rule decides; `turn` is the
    index of the turn whose own text this is, or None for text that a template adds."""

    text: str
    role: str | None = None
    turn: int | None = None


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

    Message `order[i]` stands between `texts[i]` and `texts[i + 1]`. `trims[i]` says whether the template strips white
    space off the left and the right end of message i.
    """

    texts: tuple[str, ...]
    order: tuple[int, ...]
    trims: tuple[tuple[bool, bool], ...]


class ChatRenderer:
    """Renders messages through a tokenizer's chat template and keeps track of the origin of every part.

    tokenizer: any Hugging Face tokenizer; without a chat template the plain concatenation is used. `chat_template` is
    what is rendered.
    response_header: what the plain concatenation writes before a response ("" if the responses bring their own).
    """

    def __init__(self, tokenizer, response_header: str = "Response: "):
        self._tokenizer = tokenizer
        given = getattr(tokenizer, "chat_template", None)
        if isinstance(given, dict):  # named ones, for tools for example
            given = given.get("default")
        self.chat_template = _with_fixed_clock(given or PLAIN_CHAT_TEMPLATE.replace("RESPONSE", response_header))
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}
        self._takes_system = self._accepts_system()

    def prompt(self, messages: list[Message]) -> list[Part]:
        """The parts of the string that asks for a response; it ends with the assistant's header.

        The header is what stands before the response in an example (so training and generation see the same), except
        for white space before the response, which belongs to the response's first token.
        """
        messages = self._fit(messages)
        shape = tuple(message.speaker for message in messages)
        asked, answered = self._skeleton(shape, True), self._skeleton((*shape, "assistant"), False)
        place = answered.order.index(len(messages))
        header, longer = asked.texts[-1], answered.texts[place]
        same = asked.texts[:-1] == answered.texts[:place] and asked.order == answered.order[:place]
        if same and (not longer.startswith(header) or not longer[len(header) :].strip()):
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
            except TemplateError:
                continue  # conversations of this shape are refused anyway
            try:
                if self._render(marked, generation).count(marked[0][1]) != 1:
                    return False
            except TemplateError:
                return False
        return True

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
        theirs = self._checked_render([(message.speaker, message.text) for message in kept], generation)
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
            bare = self._split(shape, marks, generation)
            spaced = self._split(shape, [f"\n{mark}\n" for mark in marks], generation)
            self._skeletons[key] = Skeleton(*bare, _trims(*bare, spaced[0]))
        return self._skeletons[key]

    def _split(
        self, shape: tuple[str, ...], contents: list[str], generation: bool
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The template's own texts, and the messages between them by index."""
        messages = list(zip(shape, contents, strict=True))
        rendered = self._checked_render(messages, generation)
        if rendered != self._render(messages, generation):
            raise PromptError(
                "The chat template writes something else each time it is used (a random number, or a clock of its "
                "own), so no two prompts would be alike. Give the tokenizer a chat template without it."
            )
        pieces = _MARKS.split(rendered)
        texts, order = tuple(pieces[0::2]), tuple(int(number) for number in pieces[1::2])
        if sorted(order) != list(range(len(shape))):
            raise PromptError(
                f"The chat template leaves out or repeats a message of a conversation {' - '.join(shape)}. "
                "Give the tokenizer a chat template that writes every message once."
            )
        return texts, order

    def _checked_render(self, messages: list[tuple[str, str]], generation: bool) -> str:
        try:
            return self._render(messages, generation)
        except TemplateError as error:
            shape = " - ".join(speaker for speaker, _ in messages)
            raise PromptError(f"The chat template refuses a conversation {shape}: {error}.") from error

    def _render(self, messages: list[tuple[str, str]], generation: bool) -> str:
        return self._tokenizer.apply_chat_template(
            [{"role": speaker, "content": text} for speaker, text in messages],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=generation,
            **TEMPLATE_ARGUMENTS,
        )


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


def _trims(bare: tuple[str, ...], order: tuple[int, ...], spaced: tuple[str, ...]) -> tuple[tuple[bool, bool], ...]:
    """Find which ends of the messages lost the newline that was put around them.

    bare, spaced: the template's texts around marks without and with newlines. order: the messages between them.
    """
    kept: dict[int, list[bool]] = {message: [True, True] for message in order}
    for at, (text, with_newlines) in enumerate(zip(bare, spaced, strict=True)):
        after = order[at - 1] if at else None
        before = order[at] if at < len(order) else None
        left = "" if after is None else "\n"
        right = "" if before is None else "\n"
        if with_newlines == left + text + right:
            continue
        if after is not None:
            kept[after][1] = with_newlines == left + text
        if before is not None:
            kept[before][0] = with_newlines == text + right
    return tuple((not kept[i][0], not kept[i][1]) for i in range(len(kept)))


def _stripped(message: Message, left: bool, right: bool) -> Message:
    parts = list(message.parts)
    if left:
        parts = _strip_end(parts, str.lstrip)
    if right:
        parts = _strip_end(parts[::-1], str.rstrip)[::-1]
    return Message(message.speaker, tuple(parts))


def _strip_end(parts: list[Part], strip: Callable[[str], str]) -> list[Part]:
    for i, part in enumerate(parts):
        text = strip(part.text)
        if text:
            return [Part(text, part.role, part.turn), *parts[i + 1 :]]
    return []
