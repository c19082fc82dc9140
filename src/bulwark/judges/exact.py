"""A judge that compares with the right answer: the top of the scale if they are equal, else 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from bulwark.errors import ConfigurationError
from bulwark.judges import Judgement, Request
from bulwark.settings import Closed


class Settings(Closed):
    """match: whether the answer must equal the expected one or contain it. White space is collapsed."""

    match: Literal["whole", "within"] = "whole"
    ignore_case: bool = False


def judge(requests: Sequence[Request], settings: Settings, scale: int) -> Iterator[tuple[int, Judgement]]:
    """Raises ConfigurationError for a request without an expected answer."""
    for index, request in enumerate(requests):
        if request.expected is None or not request.expected.strip():  # every answer holds an empty one
            raise ConfigurationError(
                f'The judge "exact" needs the right answer, which "{request.key}" ({request.criterion}) does not have. '
                "Choose another kind of judge."
            )
        given, expected = (_normalised(text, settings) for text in (request.answer, request.expected))
        right = given == expected if settings.match == "whole" else expected in given
        yield index, Judgement(float(scale * right), method="exact")


def _normalised(text: str, settings: Settings) -> str:
    text = " ".join(text.split())
    return text.casefold() if settings.ignore_case else text
