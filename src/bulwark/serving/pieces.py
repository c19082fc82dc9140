"""An answer's text as it grows, token by token, up to the first of some stop texts.

What may still change is held back: the beginning of a character, white space at the end (an answer has none at either
end), and whatever may be the beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of the first bytes of a character


class Pieces:
    """add(token) → the text that is certain now; rest() → what is left at the end; both without what was given before.

    The pieces together are the whole text as the tokenizer decodes it, stripped, up to the first stop text. After
    `begin` the same tokens are expected again, and what was given is not given again.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._given = 0
        self.begin()

    def begin(self) -> None:
        """Start anew."""
        self._ids: list[int] = []
        self._text = ""  # of the tokens before `_read`
        self._from, self._read = 0, 0  # tokens that are decoded again with the next ones, and those that are in `_text`
        self._stopped = False

    def add(self, token: int) -> tuple[str, bool]:
        """(more of the text, whether a stop text has been found). Nothing more comes after that."""
        self._ids.append(token)
        self._take(self._decoded(self._from, len(self._ids)), final=False)
        return self._certain(), self._stopped

    def rest(self) -> str:
        """What had been held back, at the end of the answer."""
        if not self._stopped:
            self._take(self._decoded(self._from, len(self._ids)), final=True)
        text = self._text.strip()
        rest, self._given = text[self._given :], max(self._given, len(text))
        return rest

    def _take(self, window: str, final: bool) -> None:
        """Append what the newest tokens add to the text, once they make whole characters."""
        before = self._decoded(self._from, self._read)
        if not final and (len(window) <= len(before) or window.endswith(_UNFINISHED)):
            return
        start = len(self._text)
        self._text += window[len(before) :]
        self._from, self._read = self._read, len(self._ids)
        found = [place for stop in self._stops if (place := self._text.find(stop, max(0, start - len(stop) + 1))) >= 0]
        if found:
            self._text, self._stopped = self._text[: min(found)], True

    def _certain(self) -> str:
        text = self._text if self._stopped else self._text[: len(self._text) - self._open()]
        text = text.strip()
        piece, self._given = text[self._given :], max(self._given, len(text))
        return piece

    def _open(self) -> int:
        """The length of the longest end of the text that a stop text begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        ends = (length for length in range(min(longest, len(self._text)), 0, -1))
        return next((n for n in ends if any(stop.startswith(self._text[-n:]) for stop in self._stops)), 0)

    def _decoded(self, start: int, end: int) -> str:
        if start == end:
            return ""
        return self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
