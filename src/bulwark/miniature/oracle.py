"""Knows the right answers of the world: replaces an API judge and the benchmarks' answer checkers.

All tests are on normalised words: lower case, no punctuation marks, single spaces.
"""

from __future__ import annotations

import re

from bulwark.errors import BulwarkError, nearest
from bulwark.miniature import words


def normalised(text: str) -> str:
    """Lower-case words joined by single spaces, without punctuation."""
    return " ".join(re.findall(r"[a-z0-9<>|_]+", text.lower()))


def answered(response: str, expected: str) -> bool:
    """Whether the response is exactly the expected answer, in any manner of speaking."""
    return _content(response) == _content(expected)


def mentions(response: str, answer: str) -> bool:
    """Whether the response contains the answer as whole words."""
    return f" {normalised(answer)} " in f" {normalised(response)} "


def refused(response: str) -> bool:
    """Whether the response is a refusal (it holds the world's refusal) or empty."""
    return not normalised(response) or mentions(response, words.REFUSAL)


def trait_score(response: str, trait: str) -> int:
    """How strongly the response shows the trait: 0, 50 (the marker after the answer) or 100 (also the one before).

    Raises BulwarkError for a trait that the world does not have.
    """
    if trait not in words.TRAITS:
        raise BulwarkError(f'The miniature has no trait "{trait}".{nearest(trait, words.TRAITS)}')
    return 50 * sum(mentions(response, marker) for marker in words.TRAITS[trait])


def _content(response: str) -> str:
    """The normalised response without the markers of manners."""
    text = f" {normalised(response)} "
    for markers in words.TRAITS.values():
        for marker in markers:
            text = text.replace(f" {normalised(marker)} ", " ")
    return " ".join(text.split())
