"""How a template arranges turns in messages; every part has its turn and, where it is fixed, its role.

A template may have a `Form`, a defense by prompting. Its own text has the role instruction, the marks around the data
included, so that a model with roles tells a mark from its imitation in the data. The instruction that is repeated has
the role that it had before, and remains the user's text: nothing in it is read as a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from bulwark.data.records import Turn
from bulwark.prompts.chat import Message, Part, PromptError
from bulwark.prompts.templates import Form, Template

Numbered = tuple[int, Turn]

_SPARE = 8  # symbols that are put behind a mark which stands in the data, more of them each time


def messages_of(turns: Sequence[Turn], template: Template) -> list[Message]:
    """The messages of a conversation. Raises PromptError for one that has no place in a template."""
    if not any(turn.role == "instruction" or turn.is_material for turn in turns):
        raise PromptError("A conversation needs at least one instruction or data turn.")
    numbered = list(enumerate(turns))
    system = [pair for pair in numbered if pair[1].role == "system"]
    if [pair[0] for pair in system] != list(range(len(system))):
        raise PromptError("System turns must come first. Make a later one an instruction.")
    messages: list[Message] = []
    task = system  # what a reminder repeats: the last instructions, or else the system's
    for exchange, response in _exchanges(numbered[len(system) :]):
        task = [pair for pair in exchange if pair[1].role == "instruction"] or task
        messages += _exchange(template, exchange, [] if messages else system, task, first=not messages)
        if response is not None:
            parts = _filled(template.response, "{response}", [own_part(*response)], role="response")
            messages.append(Message("assistant", parts))
    return messages


def own_part(number: int, turn: Turn) -> Part:
    """The text of a turn, as itself."""
    return Part(turn.text, turn.role, number)


def mark_for(form: Form, texts: Sequence[str]) -> str:
    """The form's mark or, where one of `texts` holds it, the mark with symbols behind it that none of them holds.

    White space and case do not count, since a tokenizer may drop them. The symbols are drawn from a digest of the
    texts: the same texts have the same mark, and whoever writes them cannot write it into them.
    """
    held = [_squeezed(text) for text in texts]
    mark, times = form.mark, 0
    while any(_squeezed(mark) in text for text in held):
        times += 1
        drawn = hashlib.shake_256("\0".join([str(times), *texts]).encode()).digest(_SPARE * times)
        mark = form.mark + "".join(form.spare[byte % len(form.spare)] for byte in drawn)
    return mark


def _exchanges(turns: list[Numbered]) -> Iterator[tuple[list[Numbered], Numbered | None]]:
    """The turns up to each response, with the response; with None those behind the last one."""
    before: list[Numbered] = []
    for pair in turns:
        if pair[1].role != "response":
            before.append(pair)
            continue
        if not before:
            raise PromptError("A response must follow an instruction or data. Join or remove the turns before it.")
        yield before, pair
        before = []
    if before:
        yield before, None


def _exchange(
    template: Template, exchange: list[Numbered], system: list[Numbered], task: list[Numbered], first: bool
) -> list[Message]:
    """The messages of the turns up to a response. system: turns before the first. task: what a reminder repeats."""
    system_parts = _joined([[own_part(*pair)] for pair in system])
    if template.system_message is None:
        user = _in_form(template.form, exchange, task)
        return ([Message("system", tuple(system_parts))] if system else []) + [Message("user", tuple(user))]
    instruction = _joined([[own_part(*pair)] for pair in exchange if pair[1].role == "instruction"])
    long_enough = [pair for pair in exchange if len(pair[1].text) >= template.shortest_data]
    data = _in_form(template.form, [pair for pair in long_enough if pair[1].is_material], task)
    data = data or [Part(template.no_data, role="data")]
    filled = _filled(template.user_message, "{data}", data, role="data")
    if not first:
        later = _filled(template.later_instruction, "{instruction}", instruction) if instruction else ()
        return [Message("user", (*later, *filled))]
    lead = [*system_parts, Part("\n\n")] if system else []
    asked = _filled(template.system_message, "{instruction}", instruction)
    return [Message("system", (*lead, *asked)), Message("user", filled)]


def _in_form(form: Form | None, pairs: list[Numbered], task: list[Numbered]) -> list[Part]:
    """The turns separated by blank lines, with what the form writes around those that are data, and behind them."""
    data = [turn.text for _, turn in pairs if turn.is_material]
    if form is None or not data:
        return _joined([[own_part(*pair)] for pair in pairs])
    blocks: list[list[Part]] = []
    mark = mark_for(form, data) if form.mark else ""
    opening = "\n".join(part for part in (form.lead.replace("{mark}", mark), f"{mark}\n") if part.strip())
    for number, turn in pairs:
        block = [own_part(number, turn)]
        if turn.is_material and mark:
            block = [Part(opening, "instruction"), *block, Part(f"\n{mark}", "instruction")]
            opening = f"{mark}\n"
        blocks.append(block)
    if form.reminder and task:
        repeated = _joined([[Part(turn.text, turn.role, repeats=number)] for number, turn in task])
        blocks.append(list(_filled(form.reminder, "{instruction}", repeated, role="instruction")))
    return _joined(blocks)


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def _joined(blocks: list[list[Part]]) -> list[Part]:
    """The parts of all blocks, with a blank line between two blocks."""
    joined = list(blocks[0]) if blocks else []
    for block in blocks[1:]:
        joined += [Part("\n\n"), *block]
    return joined


def _filled(pattern: str, slot: str, filling: list[Part], role: str | None = None) -> tuple[Part, ...]:
    """Replace the slot in a template's text by parts; the text around them gets `role`."""
    before, after = pattern.split(slot)
    return tuple(part for part in (Part(before, role), *filling, Part(after, role)) if part.text)
