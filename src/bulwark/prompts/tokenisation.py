"""Tokenising a string once, with the pieces of the string that each token touches.

It differs from a plain call of the tokenizer in two ways. Control tokens (end of turn, for example) come from the
template only: the same characters inside a user's text are split like any other text, so a text cannot close its turn.
And there is exactly one beginning-of-sequence token if the tokenizer uses one, whether the template writes it, the
tokenizer adds it, or both.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bulwark.prompts.chat import PromptError

# Private-use characters; one of them, with a number, stands for a control token of the template.
_MARKS = [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]


@dataclass(frozen=True)
class Tokens:
    """`ids[i]` stands for the characters `offsets[i]` of `text` and touches the pieces `touched[i]` (indices);
    a beginning-of-sequence token without text touches none. guarded: a user's text holds the characters of a control
    token, which are kept apart from the template's."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    touched: list[list[int]]
    text: str
    guarded: bool = False

    def text_of(self, kept: Sequence[int]) -> str:
        """The text without the characters that belong only to tokens outside `kept` (sorted indices)."""
        if len(kept) == len(self.ids):
            return self.text
        gone = bytearray(len(self.text))
        remaining = set(kept)
        for present in (False, True):
            for i, (start, end) in enumerate(self.offsets):
                if (i in remaining) == present:
                    gone[start:end] = (b"\0" if present else b"\1") * (end - start)
        return "".join(character for character, cut in zip(self.text, gone, strict=True) if not cut)


class TextTokenizer:
    """Tokenises strings that are made of template pieces and user pieces.

    literals: the chat template's own text, which shows the added tokens that it uses as control tokens.
    `state` describes the tokenizer completely, as text (for digests). `separators`: the control tokens at which a text
    is split before anything else is done to it, so that what follows one is tokenised alike whatever comes before.
    """

    def __init__(self, tokenizer, literals: str):
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer, literals)
        unknown = tokenizer.unk_token_id
        self._unknown = None if unknown in _named_otherwise(tokenizer, literals) else unknown
        self._control_ids = set(self._control.values())
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._aliases: dict[str, _AliasEncoder] = {}
        added = tokenizer.added_tokens_decoder
        self.separators = {i for i in self._control_ids if not (added[i].normalized or added[i].single_word)}
        self.bos_id = self._beginning(literals)
        if tokenizer.is_fast:
            whole = json.loads(tokenizer.backend_tokenizer.to_str())
            self.state = json.dumps({**whole, "truncation": None, "padding": None})
            self._encoder: Tokenizer | None = _encoder(whole)
        else:
            self.state = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
            self._encoder = None

    def __call__(self, pieces: Sequence[tuple[str, bool]]) -> Tokens:
        """Tokenise the concatenation of (text, comes from the template) pieces."""
        if self._encoder is None:
            return self._with_one_bos(self._piecewise(pieces))
        text = "".join(text for text, _ in pieces)
        encoding = self._encoder.encode(text, add_special_tokens=False)
        tokens = Tokens(encoding.ids, encoding.offsets, _touched(encoding.offsets, pieces), text)
        if self._control_in_user_text(tokens, pieces):
            tokens = self._guarded(pieces, text)
        return self._with_one_bos(tokens)

    def after(self, pieces: Sequence[tuple[str, bool]], separator: int) -> Tokens | None:
        """Tokenise the end of a string, which begins with a separator; None where that needs the whole string."""
        if self._encoder is None:
            return None
        text = "".join(text for text, _ in pieces)
        encoding = self._encoder.encode(text, add_special_tokens=False)
        tokens = Tokens(encoding.ids, encoding.offsets, _touched(encoding.offsets, pieces), text)
        safe = tokens.ids[0] == separator != self.bos_id and not self._control_in_user_text(tokens, pieces)
        return tokens if safe else None

    def first_control_token(self, text: str) -> tuple[int, int, int] | None:
        """Start and end of the first control token in a template's text, and the token's id."""
        match = self._pattern.search(text)
        return (match.start(), match.end(), self._control[match.group()]) if match else None

    def _control_in_user_text(self, tokens: Tokens, pieces: Sequence[tuple[str, bool]]) -> bool:
        return any(
            token in self._control_ids and not all(pieces[i][1] for i in touched)
            for token, touched in zip(tokens.ids, tokens.touched, strict=True)
        )

    def _guarded(self, pieces: Sequence[tuple[str, bool]], text: str) -> Tokens:
        """Tokenise with aliases for the template's control tokens, so that those in user text are plain text."""
        mark = next(character for character in map(chr, _MARKS) if character not in text)
        if mark not in self._aliases:
            self._aliases[mark] = _AliasEncoder(json.loads(self.state), self._control, mark)
        aliases = self._aliases[mark]
        names = aliases.names
        hidden = [(self._pattern.sub(lambda m: names[m.group()], part) if own else part, own) for part, own in pieces]
        joined = "".join(part for part, _ in hidden)
        found, places = aliases.encode(joined)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        touched: list[list[int]] = []
        for token, place, touching in zip(found, places, _touched(places, hidden), strict=True):
            if token < 0:  # an alias: a token of the template, even if it includes white space of a neighbouring text
                plain, touching = [-token - 1], [piece for piece in touching if pieces[piece][1]]
            elif token in self._control_ids:
                plain = self._instead_of(token, joined[slice(*place)], aliases.spelled)
            else:
                plain = [token]
            ids += plain
            offsets += [place] * len(plain)
            touched += [touching] * len(plain)
        return Tokens(ids, aliases.original_offsets(hidden, pieces, offsets), touched, text, guarded=True)

    def _instead_of(self, token: int, characters: str, spelled: Callable[[str], list[int]]) -> list[int]:
        """What `characters` of a text get that are also a control token in the model's own vocabulary, or unknown.

        That is the tokens of the single characters, or one unknown token where all of them are unknown.
        spelled(text): the ids of the characters, each by itself.
        """
        name = self._tokenizer.convert_ids_to_tokens(token)
        ids = [] if token == self._tokenizer.unk_token_id and characters != name else spelled(name)
        if set(ids) & (self._control_ids - {self._unknown}):
            ids = []
        if ids and set(ids) != {self._unknown}:
            return ids
        if self._unknown is None:
            raise PromptError(
                f'A text contains characters that the tokenizer can only write as its control token "{name}". '
                "Give the tokenizer an unk_token of its own, or take the characters out of the text."
            )
        return [self._unknown]

    def _piecewise(self, pieces: Sequence[tuple[str, bool]]) -> Tokens:
        """For tokenizers that do not report offsets: piece by piece; ids at the seams may differ from one pass."""

        def encoded(text: str, own: bool = False) -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not own)

        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        touched: list[list[int]] = []
        position = 0
        for i, (text, own) in enumerate(pieces):
            piece_ids = encoded(text, own)
            if not own:
                piece_ids = [
                    plain
                    for id in piece_ids
                    for plain in (
                        self._instead_of(id, "", lambda name: [t for character in name for t in encoded(character)])
                        if id in self._control_ids
                        else [id]
                    )
                ]
            ids += piece_ids
            touched += [[i]] * len(piece_ids)
            offsets += [(position, position + len(text))] * len(piece_ids)
            position += len(text)
        return Tokens(ids, offsets, touched, "".join(text for text, _ in pieces))

    def _beginning(self, literals: str) -> int | None:
        """The beginning-of-sequence id, if encoding adds it or the template writes it."""
        bos = self._tokenizer.bos_token_id
        if bos is None:
            return None
        added = self._tokenizer("a")["input_ids"][:1] == [bos]
        return bos if added or literals.startswith(self._tokenizer.bos_token) else None

    def _with_one_bos(self, tokens: Tokens) -> Tokens:
        if self.bos_id is None:
            return tokens
        extra = next((i for i, token in enumerate(tokens.ids) if token != self.bos_id), len(tokens.ids))
        if extra == 1:
            return tokens
        return Tokens(
            [self.bos_id, *tokens.ids[extra:]],
            [(0, 0), *tokens.offsets[extra:]],
            [[], *tokens.touched[extra:]],
            tokens.text,
            tokens.guarded,
        )


def control_tokens(tokenizer, literals: str) -> dict[str, int]:
    """Text and id of the control tokens: the special ones, and added ones that the template writes."""
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in literals)
    }


def _named_otherwise(tokenizer, literals: str) -> set[int]:
    """The ids of tokens with a meaning beside "unknown": beginning, end, padding …, or one that the template writes."""
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"}
    texts = [text for token in named.values() for text in ([token] if isinstance(token, str) else token)]
    if tokenizer.unk_token is not None and str(tokenizer.unk_token) in literals:
        texts.append(tokenizer.unk_token)
    return set(tokenizer.convert_tokens_to_ids([str(text) for text in texts]))


class _AliasEncoder:
    """The tokenizer with its control tokens as plain text, and with aliases that no text contains in their place.

    mark: a character that is in none of the texts; `names` are the aliases of the control tokens by their text.
    """

    def __init__(self, state: dict[str, Any], control: dict[str, int], mark: str):
        added = {token["content"]: token for token in state["added_tokens"]}
        marked = [{**token, "special": token["special"] or token["content"] in control} for token in added.values()]
        self._encoder = _encoder({**state, "added_tokens": marked})
        self._encoder.encode_special_tokens = True
        self.names = {text: f"{mark}{number}{mark}" for number, text in enumerate(control)}
        aliases = []
        for text, name in self.names.items():
            like = {key: added[text][key] for key in ("single_word", "lstrip", "rstrip")} if text in added else {}
            aliases.append(AddedToken(name, normalized=False, special=False, **like))
        self._encoder.add_tokens(aliases)  # in one call: each looks at the whole vocabulary and all added tokens
        self._originals = {self._encoder.token_to_id(name): control[text] for text, name in self.names.items()}

    def spelled(self, text: str) -> list[int]:
        """The ids of the characters of a word of the model's vocabulary, each by itself."""
        return [token.id for character in text for token in self._encoder.model.tokenize(character)]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids (an alias of the control token c as -c - 1) and offsets."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        originals = self._originals
        return [-originals[i] - 1 if i in originals else i for i in encoding.ids], encoding.offsets

    @staticmethod
    def original_offsets(
        hidden: Sequence[tuple[str, bool]], pieces: Sequence[tuple[str, bool]], offsets: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Offsets in the text without aliases: exact in user pieces, the whole piece in the template's."""
        before = [0, *accumulate(len(text) for text, _ in hidden)]
        after = [0, *accumulate(len(text) for text, _ in pieces)]

        def moved(position: int, end: bool) -> int:
            piece = min(max(bisect_right(before, position - end) - 1, 0), len(pieces) - 1)
            if pieces[piece][1]:
                return after[piece + 1] if end else after[piece]
            return after[piece] + position - before[piece]

        return [(moved(start, False), moved(end, True)) for start, end in offsets]


def _encoder(state: dict[str, Any]) -> Tokenizer:
    """The bare tokenizer: no post-processor (which would trim white space off the offsets), truncation or padding."""
    return Tokenizer.from_str(json.dumps({**state, "post_processor": None, "truncation": None, "padding": None}))


def _touched(offsets: list[tuple[int, int]], pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """For each token the pieces that share a character with it; a token of no character belongs to the next one."""
    starts = [0, *accumulate(len(text) for text, _ in pieces)]
    last = len(pieces) - 1
    singles = [[piece] for piece in range(len(pieces))]
    touched = []
    piece, before = 0, 0  # of the token before: the piece in which it begins, and its first character
    for start, end in offsets:
        if start < before:
            piece = 0
        before = start
        while piece < last and starts[piece + 1] <= start:
            piece += 1
        if max(end, start + 1) <= starts[piece + 1] or piece == last:
            touched.append(singles[piece])
        else:
            high = min(bisect_right(starts, max(end - 1, start)) - 1, last)
            touched.append(list(range(piece, high + 1)))
    return touched
