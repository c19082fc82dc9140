"""Prompts: turns with roles become token ids that carry the roles (ASIDE, Sec. 3).

All text becomes model input here, for training and for answering. Roles are known before the string is assembled. The
string is tokenised once, so the ids are those of the plain text. A token that touches data text has the role data, so
no character of the data is ever read as an instruction. The template's own tokens have the role instruction up to the
data and the role data after it, assistant header included, as in the authors' code; the response has the role response.

An id carries its role: `id + vocabulary * number`, response 0, instruction 1, data 2 (see `embeddings`). More roles are
counted in the model's order; what is said of data here holds of a tool's output, too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bulwark.data.records import MATERIAL, ROLES, Turn, role_numbers
from bulwark.errors import nearest
from bulwark.prompts.arrangement import messages_of, own_part
from bulwark.prompts.chat import ChatRenderer, Part, PromptError
from bulwark.prompts.templates import TEMPLATES
from bulwark.prompts.tokenisation import TextTokenizer, Tokens

IGNORED = -100
"""The label of a token without loss."""


_SAMPLE = (
    Turn(role="instruction", text="Name the first word."),
    Turn(role="data", text="One two three."),
    Turn(role="response", text="One."),
    Turn(role="instruction", text="And the last?"),
    Turn(role="response", text="Three."),
)
_OPENING = (Turn(role="system", text="Be brief."), Turn(role="tool", text="Four."))  # where there are more roles


@dataclass(frozen=True)
class Span:
    """The tokens [start, end) of the text of turn number `turn`, whose role is `role`."""

    turn: int
    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """Model input. `ids` carry their roles; `labels` (None for a generation prompt) are plain ids, or -100: no loss."""

    ids: list[int]
    labels: list[int] | None
    roles: list[int]
    spans: list[Span]
    text: str
    truncated: bool


class PromptBuilder:
    """Makes prompts and training examples from turns, for one tokenizer, template and embedding size.

    tokenizer: any Hugging Face tokenizer; its chat template is used, or a plain concatenation if it has none, unless
    `template` brings one. template: a name in TEMPLATES. vocabulary: rows of the model's input embedding. max_tokens:
    longest prompt; in a longer one the end of the data is cut, then the end of the instruction (and as much of where it
    is repeated), never the template's text. more_stop_ids: stop ids of the model's generation configuration, in
    addition to `stop_ids`' others: the tokens that the template writes after an answer, and the tokenizer's
    end-of-sequence token. roles: of the model's role embedding, in its order.
    Raises PromptError when tokenizer, template and model do not fit, and for conversations that cannot become a prompt.
    """

    def __init__(
        self,
        tokenizer,
        template: str,
        vocabulary: int,
        max_tokens: int | None = None,
        more_stop_ids: Iterable[int] = (),
        roles: Sequence[str] = ROLES,
    ):
        if template not in TEMPLATES:
            raise PromptError(f'Unknown prompt template "{template}".{nearest(template, TEMPLATES)}')
        self.tokenizer = tokenizer
        self.template = TEMPLATES[template]
        self.vocabulary = vocabulary
        self.roles = tuple(roles)
        self.numbers = role_numbers(roles)
        self.max_tokens: int | None = None
        self._renderer = ChatRenderer(tokenizer, self.template.response_header, self.template.chat)
        self._text_tokenizer = TextTokenizer(tokenizer, self._renderer.literals())
        self._closing, closing_id = self._end_of_turn()
        _, inner_id = self._end_between(self._renderer.between())
        ends = [closing_id, inner_id, tokenizer.eos_token_id, *more_stop_ids]
        self.stop_ids = [end for end in dict.fromkeys(ends) if end is not None]
        self.pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.digest = self._digest(template)
        self.max_tokens = max_tokens

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """The prompt that asks for a response to `turns`; ends with the assistant's header."""
        if turns and turns[-1].role == "response":
            raise PromptError("A prompt cannot end with a response. Leave the last turn out.")
        parts = self._renderer.prompt(messages_of(turns, self.template))
        return self._prompt(turns, self._segments(parts, turns), loss_on=None)[0]

    def example(self, turns: Sequence[Turn], loss_on: Literal["response", "all"] = "response") -> Prompt:
        """A conversation to train on; ends with the last response and its end-of-turn token.

        loss_on: "response": labels on the responses and the tokens that end them; "all": on every token. A turn that is
        not to be learned (`Turn.learn`), and the token that ends it, have no label in either.
        If `max_tokens` is too small, the last response keeps at least half of it and loses its end (and the end-of-turn
        token with it: a response that was cut must not teach the model to stop).
        """
        if loss_on not in ("response", "all"):
            raise PromptError(f'Unknown loss_on "{loss_on}".{nearest(loss_on, ("response", "all"))}')
        return self._prompt(turns, self._answered(turns), loss_on)[0]

    def examples(self, turns: Sequence[Turn], responses: Sequence[Turn]) -> list[Prompt]:
        """What `example` makes of `turns` with each of several responses. What stands before them is tokenised once,
        up to the template's last control token: what comes after one does not depend on what came before.
        """
        made: list[Prompt] = []
        opening: _Opening | None = None
        for conversation in ([*turns, response] for response in responses):
            segments = self._answered(conversation)
            ending = self._after(opening, conversation, segments) if opening else None
            if ending is None:
                ending, tokens = self._prompt(conversation, segments, loss_on="response")
                opening = opening or self._opening(ending, tokens, segments)
            made.append(ending)
        return made

    def _answered(self, turns: Sequence[Turn]) -> list[_Segment]:
        """The segments of an example, up to what ends its last response."""
        if not turns or turns[-1].role != "response":
            raise PromptError("A training example must end with a response. Add it, or use prompt() to ask for one.")
        segments = self._segments(self._renderer.example(messages_of(turns, self.template)), turns)
        while not segments[-1].of_answer:
            segments.pop()  # what the template writes after the last end-of-turn token
        if self._closing and not segments[-1].ends_turn:
            raise PromptError(
                f"The chat template does not end this conversation's last response with {self._closing!r}. "
                "Give the tokenizer a template that ends every response alike."
            )
        return segments

    def _opening(self, made: Prompt, tokens: Tokens, segments: list[_Segment]) -> _Opening | None:
        """What an example shares with those that differ in the last response; None where nothing is certain."""
        header = max(number for number, segment in enumerate(segments) if not segment.of_answer)
        if made.truncated or tokens.guarded or segments[header].part.written_by is not None:
            return None
        begins = sum(len(segment.part.text) for segment in segments[:header])
        for place in reversed(range(len(tokens.ids))):
            if tokens.ids[place] in self._text_tokenizer.separators and tokens.touched[place] == [header]:
                rest = segments[header].part.text[tokens.offsets[place][0] - begins :]
                return _Opening(made, segments[: header + 1], place, rest)
        return None

    def _after(self, opening: _Opening, turns: Sequence[Turn], segments: list[_Segment]) -> Prompt | None:
        """The example of `turns`, whose beginning is there; None where it has to be made as a whole."""
        _settle_roles(segments)
        seam, count = opening.place, len(opening.segments)
        if segments[:count] != opening.segments:
            return None
        pieces = [(segment.part.text, segment.part.written_by is None) for segment in segments[count:]]
        tokens = self._text_tokenizer.after([(opening.rest, True), *pieces], opening.made.ids[seam] % self.vocabulary)
        if tokens is None:
            return None
        row = _Row(tokens, segments[count - 1 :], self.numbers)
        if not self._closing:
            row.append(self.tokenizer.eos_token_id, loss=turns[-1].learn)
        if self.max_tokens is not None and seam + len(row.ids) > self.max_tokens:
            return None
        made, first = self._made(row, turns, "response"), opening.made
        moved = [replace(span, start=span.start + seam, end=span.end + seam) for span in made.spans]
        return replace(
            made,
            ids=first.ids[:seam] + made.ids,
            labels=(first.labels or [])[:seam] + (made.labels or []),
            roles=first.roles[:seam] + made.roles,
            spans=[span for span in first.spans if span.end <= seam] + moved,
            text="".join(segment.part.text for segment in segments),
        )

    def passage(self, text: str) -> Prompt:
        """Raw text to train on: no template around it, one beginning-of-sequence token, a label on every other token.

        Its tokens have the role response, since they are what the model is to write. If it is longer than `max_tokens`,
        its end is cut; no end-of-sequence token is put after it, since a chunk of a corpus seldom ends where it stops.
        """
        return self.bare([Turn(role="response", text=text)])

    def bare(self, turns: Sequence[Turn]) -> Prompt:
        """The texts of `turns` end to end, without a template or anything between them: labels on the responses.

        For prompts that a model is asked without its chat format. Of a longer one the end of the last turn is cut.
        """
        segments = [
            _Segment(own_part(number, turn), role=turn.role, loss=turn.role == "response")
            for number, turn in enumerate(turns)
        ]
        row = _Row(self._text_tokenizer([(turn.text, False) for turn in turns]), segments, self.numbers)
        excess = 0 if self.max_tokens is None else max(0, len(row.ids) - self.max_tokens)
        row.cut(len(turns) - 1, excess)
        self._check_ids(row.ids)
        labels = [i if loss else IGNORED for i, loss in zip(row.ids, row.loss, strict=True)]
        ids = [i + self.vocabulary * role for i, role in zip(row.ids, row.roles, strict=True)]
        return Prompt(ids, labels, row.roles, row.spans(turns), row.text(), excess > 0)

    def _prompt(self, turns: Sequence[Turn], segments: list[_Segment], loss_on: str | None) -> tuple[Prompt, Tokens]:
        _settle_roles(segments)
        tokens = self._text_tokenizer([(segment.part.text, segment.part.written_by is None) for segment in segments])
        row = _Row(tokens, segments, self.numbers)
        if loss_on is not None and not self._closing:
            row.append(self.tokenizer.eos_token_id, loss=turns[-1].learn)
        truncated = self._shorten(row, turns, loss_on is not None)
        return replace(self._made(row, turns, loss_on), truncated=truncated), tokens

    def _made(self, row: _Row, turns: Sequence[Turn], loss_on: str | None) -> Prompt:
        self._check_ids(row.ids)
        labels = None
        if loss_on is not None:
            other = loss_on == "all"
            losses = (other if loss is None else loss for loss in row.loss)
            labels = [i if loss else IGNORED for i, loss in zip(row.ids, losses, strict=True)]
        return Prompt(
            ids=[i + self.vocabulary * role for i, role in zip(row.ids, row.roles, strict=True)],
            labels=labels,
            roles=row.roles,
            spans=row.spans(turns),
            text=row.text(),
            truncated=False,
        )

    def _segments(self, parts: list[Part], turns: Sequence[Turn]) -> list[_Segment]:
        """The parts in order; the end-of-turn text after a response belongs to the response."""
        segments: list[_Segment] = []
        responses = (turn for turn in turns if turn.role == "response")
        answer: Turn | None = None  # whose text, or end, comes before
        for part in parts:
            if part.role == "response":
                answer = answer or next(responses)
                segments.append(_Segment(part, loss=answer.learn, of_answer=True))
                continue
            if answer is not None:
                end, role = self._end_of_answer(part.text)
                if end:
                    ending = _Segment(Part(end), role, loss=answer.learn, of_answer=True, ends_turn=role != "")
                    segments.append(ending)
                    part = replace(part, text=part.text[len(end) :])
                answer = None
            if part.text:
                learned = part.written_by is None or turns[part.written_by].learn
                segments.append(_Segment(part, loss=None if learned else False))
        return segments

    def _end_of_answer(self, after: str) -> tuple[str, str]:
        """The template's text that ends an answer, of the text after it, and its role ("": that of what follows).

        Where the template closes an answer in the middle of a conversation otherwise than the last one, or leaves it to
        the next header, that is the text up to the first control token.
        """
        if self._closing and after.startswith(self._closing):
            return self._closing, "response"
        return self._end_between(after)[0], ""

    def _end_between(self, after: str) -> tuple[str, int | None]:
        """White space and the control token with which a text begins, and the token's id; ("", None) without one."""
        start, end, control = self._text_tokenizer.first_control_token(after) or (0, 0, None)
        return ("", None) if after[:start].strip() else (after[:end], control)

    def _end_of_turn(self) -> tuple[str, int]:
        """The template's text after a response, up to its first control token, and that token's id.

        Where the template writes none, the end-of-sequence token is appended and the text is "".
        """
        after = self._renderer.closing()
        control = self._text_tokenizer.first_control_token(after)
        if control is not None:
            _, end, closing_id = control
            return after[:end], closing_id
        ids = self.tokenizer.encode(after.strip(), add_special_tokens=False) if after.strip() else []
        if len(ids) == 1:
            return after.rstrip(), ids[0]
        if self.tokenizer.eos_token_id is None:
            raise PromptError(
                "Nothing marks the end of a response: the chat template writes no token after it and the tokenizer has "
                "no eos_token. Set tokenizer.eos_token."
            )
        return "", self.tokenizer.eos_token_id

    def _shorten(self, row: _Row, turns: Sequence[Turn], has_answer: bool) -> bool:
        """Cut turns until the row fits in `max_tokens`; True if anything was cut."""
        if self.max_tokens is None or len(row.ids) <= self.max_tokens:
            return False
        answer = len(turns) - 1 if has_answer else None
        if answer is not None and row.turns.count(answer) > self.max_tokens // 2:
            row.drop_after_turn(answer)
            row.cut(answer, min(len(row.ids) - self.max_tokens, row.turns.count(answer) - self.max_tokens // 2))
        for roles, least in ((MATERIAL, 0), (("instruction",), 1), (("response",), 1), (("system",), 1)):
            of_role = [i for i, turn in enumerate(turns) if turn.role in roles and i != answer]
            for turn in sorted(of_role, key=row.turns.count, reverse=True):
                excess, blocks = len(row.ids) - self.max_tokens, row.blocks(turn)
                if blocks:
                    row.cut(turn, min(math.ceil(excess / len(blocks)), min(map(len, blocks)) - least))
        if len(row.ids) > self.max_tokens:
            raise PromptError(
                f"max_tokens = {self.max_tokens} is too small: what the template adds to this conversation and the "
                f"shortest turns take {len(row.ids)} tokens. Raise it."
            )
        return True

    def _check_ids(self, ids: list[int]) -> None:
        if ids and max(ids) >= self.vocabulary:
            name = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise PromptError(
                f"The tokenizer gives the id {max(ids)} ({name!r}), but the model's embedding has {self.vocabulary} "
                "rows. Use the model's own tokenizer, or resize the embedding."
            )

    def _digest(self, name: str) -> str:
        """Of template, chat template, tokenizer and roles, and of what this code makes of a conversation with them."""
        sample = _SAMPLE if self.roles == ROLES else (*_OPENING, *_SAMPLE)
        try:
            rows = [self.prompt(sample[:-1]), self.example(sample)]
            made: Any = [[row.ids, row.roles, row.labels] for row in rows]
        except PromptError as error:
            made = str(error)
        parts = [name, repr(self.template), self._renderer.chat_template, made, self._text_tokenizer.state]
        parts += [] if self.template.form is None else [repr(self.template.form)]
        parts += [] if self.roles == ROLES else [list(self.roles)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class _Segment:
    """A part at its position in the string.

    role: the final one, "" until `_settle_roles`. loss: whether its tokens have labels; None: only where all have.
    of_answer: a response, or what ends it. ends_turn: the template's text that ends a response.
    """

    part: Part
    role: str = ""
    loss: bool | None = None
    of_answer: bool = False
    ends_turn: bool = False

    @property
    def rank(self) -> int:
        """Which segment owns a token that touches several: data before response before instruction."""
        if self.role == "response":
            return 3
        if self.part.written_by is not None:
            return 4 if self.role in MATERIAL else 2
        return 1 if self.role in MATERIAL else 0


@dataclass(frozen=True)
class _Opening:
    """The beginning that examples share: of `made`, up to the control token at `place`, before the last response.

    segments: up to the one that holds this token. rest: their text from the token on.
    """

    made: Prompt
    segments: list[_Segment]
    place: int
    rest: str


class _Row:
    """The per-token lists of one prompt, which are cut together."""

    def __init__(self, tokens: Tokens, segments: list[_Segment], numbers: dict[str, int]):
        self.ids = list(tokens.ids)
        start = _Segment(Part(""), role="instruction")
        owner: dict[tuple[int, ...], _Segment] = {(): start}
        for pieces in set(map(tuple, tokens.touched)) - {()}:
            owner[pieces] = max((segments[i] for i in pieces), key=lambda segment: segment.rank)
        owners = [owner[tuple(pieces)] for pieces in tokens.touched]
        self.roles = [numbers[owner.role] for owner in owners]
        self.loss = [owner.loss for owner in owners]
        self.turns = [-1 if owner.part.turn is None else owner.part.turn for owner in owners]
        self._pieces = [(owner.part.written_by, id(owner)) for owner in owners]
        self._tokens = tokens
        self._kept = list(range(len(self.ids)))

    def append(self, token_id: int, loss: bool) -> None:
        """Add an end-of-sequence token without text."""
        self.ids.append(token_id)
        self.roles.append(0)  # response
        self.loss.append(loss)
        self.turns.append(-1)
        self._pieces.append((None, 0))
        self._kept.append(-1)

    def blocks(self, turn: int) -> list[list[int]]:
        """The places of a turn's tokens, and of those of each repetition of it."""
        blocks: dict[int, list[int]] = {}
        for place, (writer, piece) in enumerate(self._pieces):
            if writer == turn:
                blocks.setdefault(piece, []).append(place)
        return list(blocks.values())

    def cut(self, turn: int, count: int) -> None:
        """Remove the last `count` tokens of a turn, and of each repetition of it."""
        if count > 0:
            for place in sorted((place for block in self.blocks(turn) for place in block[-count:]), reverse=True):
                self._remove(place)

    def drop_after_turn(self, turn: int) -> None:
        """Remove everything behind a turn's last token."""
        end = len(self.turns) - self.turns[::-1].index(turn)
        for i in reversed(range(end, len(self.ids))):
            self._remove(i)

    def spans(self, turns: Sequence[Turn]) -> list[Span]:
        """The tokens of each turn's text; a turn that was cut away has no span."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for i, turn in enumerate(self.turns):
            first.setdefault(turn, i)
            last[turn] = i + 1
        return [Span(i, turns[i].role, first[i], last[i]) for i in sorted(first) if i >= 0]

    def text(self) -> str:
        """The text of the remaining tokens."""
        return self._tokens.text_of([i for i in self._kept if i >= 0])

    def _remove(self, place: int) -> None:
        for column in (self.ids, self.roles, self.loss, self.turns, self._pieces, self._kept):
            del column[place]


def _settle_roles(segments: list[_Segment]) -> None:
    """The template's text is instruction up to the first data, data after it, instruction again after a response."""
    current = "instruction"
    for segment in segments:
        if segment.role:
            current = "instruction" if segment.role == "response" else segment.role
            continue
        segment.role = segment.part.role or current
        current = segment.role if segment.role in MATERIAL else current
        current = "instruction" if segment.role == "response" else current
