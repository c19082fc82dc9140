"""Which tokens of a prompt stand for a turn, or for a part of its text: an injected instruction in the data, say.

`Prompt.spans` has whole turns. A part is found by the characters that each token covers, and not by looking for its
tokens: alone, a text is tokenised otherwise than within another.
"""

from __future__ import annotations

from collections.abc import Sequence

from bulwark.data.records import Turn
from bulwark.prompts.arrangement import messages_of
from bulwark.prompts.builder import Prompt, PromptBuilder, _Row, _settle_roles
from bulwark.prompts.chat import PromptError


def places_of_turn(prompt: Prompt, turn: int) -> list[int]:
    """The places in `prompt.ids` of the text of turn number `turn`; none if it was cut away."""
    return [place for span in prompt.spans if span.turn == turn for place in range(span.start, span.end)]


def places_of_part(builder: PromptBuilder, turns: Sequence[Turn], turn: int, part: str, *, at_end: bool) -> list[int]:
    """The places in `builder.prompt(turns).ids` of the tokens that cover a character of `part` of turn number `turn`.

    at_end: the text of the turn ends with `part`; otherwise it begins with it. Tokens that were cut away have no place.
    Raises PromptError if the text does neither, or if the tokenizer does not say which characters a token covers.
    """
    if not builder.tokenizer.is_fast:
        raise PromptError("This tokenizer does not say which characters a token covers. Use its fast version.")
    prompt = builder.prompt(turns)
    # The row as the builder makes it before anything is cut: it has the characters of every token.
    segments = builder._segments(builder._renderer.prompt(messages_of(turns, builder.template)), turns)
    _settle_roles(segments)
    row = _Row(
        builder._text_tokenizer([(one.part.text, one.part.written_by is None) for one in segments]),
        segments,
        builder.numbers,
    )
    own = next(number for number, segment in enumerate(segments) if segment.part.turn == turn)
    text, part = segments[own].part.text, part.strip()  # a chat template may strip the ends of a message
    if not (text.rstrip().endswith(part) if at_end else text.lstrip().startswith(part)):
        raise PromptError(f'The text of turn {turn} does not {"end" if at_end else "begin"} with "{part}".')
    start = sum(len(segment.part.text) for segment in segments[:own])
    start += text.rindex(part) if at_end else text.index(part)
    end, offsets, first = start + len(part), row._tokens.offsets, row.turns.index(turn)
    covering = (number for number, owner in enumerate(row.turns) if owner == turn)
    wanted = [number - first for number in covering if offsets[number][0] < end and offsets[number][1] > start]
    kept = places_of_turn(prompt, turn)
    return [kept[number] for number in wanted if number < len(kept)]
