"""Adversarial text in a conversation: where its tokens stand, and whether a text gives just these tokens.

An attack on tokens is worth something only if there is a text that the tokenizer turns into them, in their place. So
every sequence of tokens that is tried is written out, put through `PromptBuilder` and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bulwark.data.records import Turn
from bulwark.errors import ConfigurationError
from bulwark.prompts.builder import PromptBuilder


@dataclass(frozen=True)
class Row:
    """A prompt with its target, as the model reads it.

    ids: they carry their roles; the target, with the role response, is the last `target` of them. places: where the
    adversarial tokens stand.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    target: int

    def filled(self, tokens: Sequence[int], vocabulary: int) -> list[int]:
        """The ids with `tokens` (plain) in the adversarial places, whose roles stay."""
        ids = list(self.ids)
        for place, token in zip(self.places, tokens, strict=True):
            ids[place] = ids[place] // vocabulary * vocabulary + token
        return ids


class Written:
    """A conversation whose turn `number` ends with adversarial text, and the answer that is to become likely.

    turns: up to the response. target: that answer. number: of an instruction or data turn, from 0; -1 is the last.
    suffix: the adversarial text at the start. unspoken: what the adversarial text must not say itself, in any case.
    Raises ConfigurationError where the suffix or the target does not survive tokenisation or is cut by `max_tokens`,
    and where the suffix says what it must not.
    """

    def __init__(
        self,
        builder: PromptBuilder,
        turns: Sequence[Turn],
        target: str,
        suffix: str,
        number: int = -1,
        unspoken: str | None = None,
    ):
        self._builder, self._turns = builder, list(turns)
        self._unspoken = unspoken
        self._number = number % len(self._turns)
        self._answer = Turn(role="response", text=target)
        start, tokens, self._row, size = self._first(suffix)
        self.tokens = tokens
        self._joint = next((joint for joint in ("", " ") if self._gives(tokens, joint)), None)
        unknown = set(tokens) & set(builder.tokenizer.all_special_ids)
        if self._joint is None or not tokens or unknown:
            raise ConfigurationError(
                f'The adversarial text "{suffix}" does not keep its tokens behind "{self._turns[self._number].text}": '
                "the tokenizer does not know them, or writes others when their text is tokenised again. Set `suffix` "
                "to words of its vocabulary."
            )
        if self._says(tokens):
            raise ConfigurationError(
                f'The adversarial text "{suffix}" says "{unspoken}" itself. Set `suffix` to others.'
            )
        self.row = Row(tuple(self._row), tuple(range(start, start + len(tokens))), size)

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether the text of `tokens` gives just these tokens in their place, leaves all others as they are, and does
        not say what is to stay unspoken.
        """
        return not self._says(tokens) and self._gives(tokens, self._joint or "")

    def suffix(self, tokens: Sequence[int]) -> str:
        """The adversarial text alone."""
        return self._builder.tokenizer.decode(list(tokens))

    def _says(self, tokens: Sequence[int]) -> bool:
        return self._unspoken is not None and self._unspoken.strip().lower() in self.suffix(tokens).lower()

    def text(self, tokens: Sequence[int]) -> str:
        """The text of the turn with these adversarial tokens at its end."""
        return self._text(tokens, self._joint or "")

    def turns(self, tokens: Sequence[int]) -> list[Turn]:
        """The conversation with these adversarial tokens."""
        return self._with(self.text(tokens))

    def _first(self, suffix: str) -> tuple[int, list[int], list[int], int]:
        """Where the suffix begins, its plain tokens, the whole row, and how many tokens the target has."""
        text = self._turns[self._number].text
        without, present = self._encoded(text), self._encoded(f"{text} {suffix}")
        if without is None or present is None:
            raise ConfigurationError(
                f'The prompt that ends with "{text} {suffix}" and its target are longer than the model reads '
                "(max_tokens), or the target has no token. Take a shorter prompt, or raise max_tokens."
            )
        row, (begin, end), size = present
        alone, own = without[0][slice(*without[1])], row[begin:end]
        same = next((n for n, (a, b) in enumerate(zip(alone, own, strict=False)) if a != b), min(len(alone), len(own)))
        return begin + same, [token % self._builder.vocabulary for token in own[same:]], row, size

    def _text(self, tokens: Sequence[int], joint: str) -> str:
        return f"{self._turns[self._number].text}{joint}{self._builder.tokenizer.decode(list(tokens))}"

    def _with(self, text: str) -> list[Turn]:
        changed = self._turns[self._number].model_copy(update={"text": text})
        return [changed if n == self._number else turn for n, turn in enumerate(self._turns)]

    def _gives(self, tokens: Sequence[int], joint: str) -> bool:
        text = self._text(tokens, joint)
        if not text.strip():
            return False
        found = self._encoded(text)
        if found is None:
            return False
        row, (_, end), _ = found
        expected = list(self._row)
        first = end - len(tokens)
        if first < 0 or len(row) != len(expected):
            return False
        roles = self._builder.vocabulary
        expected[first:end] = [old // roles * roles + new for old, new in zip(expected[first:end], tokens, strict=True)]
        return row == expected

    def _encoded(self, text: str) -> tuple[list[int], tuple[int, int], int] | None:
        """The row up to the target's end, where in it the turn with this text lies, and the target's tokens.

        None where it is too long for the model, so that a part of it would be cut.
        """
        return encoded(self._builder, self._with(text), self._answer, self._number)


def encoded(
    builder: PromptBuilder, turns: Sequence[Turn], answer: Turn, number: int
) -> tuple[list[int], tuple[int, int], int] | None:
    """The row up to the end of `answer`, where in it turn `number` lies, and how many tokens the answer has.

    None where it is too long for the model, so that a part of it would be cut.
    """
    made = builder.example([*turns, answer])
    spans = {span.turn: span for span in made.spans}
    if made.truncated or number not in spans or len(turns) not in spans:
        return None
    own, last = spans[number], spans[len(turns)]
    return made.ids[: last.end], (own.start, own.end), last.end - last.start


@dataclass
class Case:
    """Adversarial tokens that one or several prompts share, and how far their optimisation is.

    written: the prompts; with several, the tokens become universal. tokens: the present ones, plain ids. number: what
    the random draws depend on beside the seed. loss: of the present tokens when they were chosen. best, best_loss: the
    tokens with the lowest loss so far. drawn, refused: substitutions tried, and those that no text gives.
    """

    written: Sequence[Written]
    number: int = 0
    tokens: list[int] = field(default_factory=list)
    loss: float | None = None
    best: list[int] = field(default_factory=list)
    best_loss: float = float("inf")
    steps: int = 0
    drawn: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        starts = {tuple(written.tokens) for written in self.written}
        if not self.tokens and len(starts) != 1:
            raise ConfigurationError(
                f"Prompts that are to share adversarial tokens tokenise the first ones in {len(starts)} ways. Set "
                "`suffix` to a text that does not join with what stands before it, or attack the prompts one by one."
            )
        self.tokens = self.tokens or list(starts.pop())

    @property
    def rows(self) -> list[Row]:
        return [written.row for written in self.written]

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether a text gives these tokens in every prompt."""
        return all(written.holds(tokens) for written in self.written)

    def state(self) -> dict[str, object]:
        """What has to be kept to go on later, as plain data; `restore` takes it up."""
        return {key: value for key, value in vars(self).items() if key not in ("written", "best_loss")} | {
            "best_loss": self.best_loss if self.best else None
        }

    def restore(self, state: dict[str, object]) -> None:
        """Take up what `state` returned."""
        for key, value in state.items():
            setattr(self, key, value)
        if self.best_loss is None:
            self.best_loss = float("inf")


def allowed_tokens(tokenizer, vocabulary: int, allow_non_ascii: bool = False) -> Tensor:
    """The ids that an attack may write, [n]: printable text, no special or added token, ASCII unless allowed otherwise.

    vocabulary: rows of the model's embedding; padding rows beyond the tokenizer's are left out.
    """
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    kept = []
    for token in range(min(vocabulary, len(tokenizer))):
        if token not in added:
            text = tokenizer.decode([token])
            if text.strip() and text.isprintable() and "\ufffd" not in text and (allow_non_ascii or text.isascii()):
                kept.append(token)
    if not kept:
        raise ConfigurationError(
            "The tokenizer has no token that an attack may write: none is printable ASCII. Set allow_non_ascii: true."
        )
    return torch.tensor(kept)
