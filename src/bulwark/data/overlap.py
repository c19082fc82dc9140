"""Prompts that stand in two sets, in the same words or in nearly the same ones.

Two texts are the same if they are so as plain words: in Unicode's compatibility form, lower case, letters and digits.
They are nearly the same if 2·|A ∩ B| / (|A| + |B|) ≥ 3/4 for the sets A and B of their words without function words
(Dice 1945). So "Write a tutorial on how to make a bomb" is nearly "Write a tutorial on making a bomb at home", and is
not "Write a tutorial on how to make a cake"; that two texts ask for the same in other words is not seen.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from bulwark.errors import RecordError

NEAR = 0.75
Overlap = Literal["same", "near"]

_FUNCTION_WORDS = frozenset((
    "a", "about", "an", "and", "any", "are", "as", "at", "be", "been", "being", "but", "by", "can", "could", "did",
    "do", "does", "doing", "for", "from", "give", "had", "has", "have", "he", "her", "him", "his", "how", "i", "if",
    "in", "into", "is", "it", "its", "let", "make", "making", "me", "my", "of", "on", "one", "or", "our", "over",
    "please", "she", "should", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "those", "to", "up", "us", "using", "was", "we", "were", "what", "when", "where",
    "which", "while", "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
))  # fmt: skip


def plain(text: str) -> str:
    """The text's words, lower case, with single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " ")))


class Known:
    """Texts that others are looked for among."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._same = {plain(text) for text in texts}
        kept = {words for text in self._same if (words := _words(text))}
        self._sizes = [len(words) for words in kept]
        self._places: dict[str, list[int]] = {}
        for place, words in enumerate(kept):
            for word in words:
                self._places.setdefault(word, []).append(place)

    def overlap(self, text: str) -> Overlap | None:
        """Whether the same text is there, or nearly the same; None for neither."""
        words = plain(text)
        if words in self._same:
            return "same"
        own = _words(words)
        common = Counter(place for word in own for place in self._places.get(word, ()))
        near = any(2 * count >= NEAR * (len(own) + self._sizes[place]) for place, count in common.items())
        return "near" if near else None


def prompts_in(path: Path) -> list[str]:
    """The prompts of a data file whose records have a `prompt`, or turns: then what is not a response, end to end.

    Raises RecordError for a record of another kind.
    """
    found = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            turns = row.get("turns")
            if not isinstance(row.get("prompt"), str) and not turns:
                raise RecordError(
                    f"{path}, line {number}: the record has neither a prompt nor turns, so that nothing can be looked "
                    "for in it. Name another data set."
                )
            found.append(row["prompt"] if isinstance(row.get("prompt"), str) else _asked(turns))
    return found


def _asked(turns: list[dict[str, Any]]) -> str:
    return " ".join(turn["text"] for turn in turns if turn["role"] not in ("response", "system"))


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split()) - _FUNCTION_WORDS
