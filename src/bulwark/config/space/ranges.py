"""What a step's space says of each setting, and the settings of its trials.

A space is a map from a settings key, with points between its parts (`training.lora.rank`), to a range: `{low: 1.0e-6,
high: 1.0e-3, log: true}`, whole numbers where both ends are whole (`{low: 1, high: 8}`, both included), or a list of
choices. Trial n of a step takes point n of a scrambled Sobol sequence, a pure function of the step's name, n and the
space: more trials never change earlier ones. Its dimensions are the keys in alphabetical order, so that it does not
matter in which order, or in which file, they are written.

A grid is a space of lists alone. Its trials are all their combinations, counted in the order in which the keys are
written, the last the fastest: with two keys of two values, trial 1 has the first value of the one and the second of the
other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

from pydantic import model_serializer, model_validator

from bulwark.config.space import sobol
from bulwark.errors import ConfigurationError
from bulwark.settings import Closed

_DIGITS = 4  # of a drawn number: it is then written, read and compared as the same number everywhere


class Range(Closed):
    """What a setting of a trial is drawn from: numbers from `low` to `high`, or one of `choices` (written as a list).

    log: evenly in the logarithm.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return {"choices": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _drawable(self) -> Range:
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("a range has low and high, or it is a list of choices; not both")
            written = [json.dumps(choice, sort_keys=True) for choice in self.choices]
            if len(set(written)) != len(written) or len(written) < 2:
                raise ValueError("choices are two or more, each of them once; what is not varied goes into settings")
        elif self.low is None or self.high is None:
            raise ValueError("a range is {low: …, high: …}, with log: true if need be, or a list of choices")
        elif self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low is the smaller one")
        elif self.log and self.low <= 0:
            raise ValueError(f"with log, low is above 0; here it is {self.low:g}")
        return self

    @model_serializer
    def _written(self) -> Any:
        return self.choices if self.choices is not None else {"low": self.low, "high": self.high, "log": self.log}

    def ends(self) -> list[Any]:
        """The values at its ends, or all choices."""
        return [self.low, self.high] if self.choices is None else self.choices

    def at(self, share: float) -> Any:
        """The value at a share of it, above 0 and below 1; numbers that are not whole have four digits."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + 1 if whole else self.high
        value = low * math.exp(share * math.log(high / low)) if self.log else low + share * (high - low)
        return min(max(self.low, math.floor(value) if whole else float(f"{value:.{_DIGITS}g}")), self.high)


def check_keys(space: Mapping[str, Range | None]) -> None:
    """Raise ValueError for keys that cannot stand together, or too many of them."""
    for key in space:
        if inside := [other for other in space if other.startswith(f"{key}.")]:
            raise ValueError(f"{key} and {inside[0]}: one is inside of the other; vary one of them")
    if len(space) > sobol.DIMENSIONS:
        raise ValueError(f"a space has at most {sobol.DIMENSIONS} keys, here are {len(space)}")


def grid_size(space: Mapping[str, Range]) -> int:
    """How many combinations a grid has."""
    return math.prod(len(given.ends()) for given in space.values())


def trial(step: str, number: int, space: Mapping[str, Range], grid: bool = False) -> dict[str, Any]:
    """The settings by key in which trial `number` of `step` differs; of a grid, `number` is below `grid_size`.

    Raises ConfigurationError from 2^32 on.
    """
    if grid:
        values = {}
        for key in reversed(space):
            choices = space[key].ends()
            number, place = divmod(number, len(choices))
            values[key] = choices[place]
        return {key: values[key] for key in space}
    if number >= 2**sobol.BITS:
        raise ConfigurationError(f"{step}.{number}: trials are numbered from 0 to {2**sobol.BITS - 1}.")
    keys = sorted(space)
    shares = sobol.point(number, [f"{step}/{key}" for key in keys])
    return {key: space[key].at(share) for key, share in zip(keys, shares, strict=True)}


def checked(space: Mapping[str, Range]) -> Iterator[dict[str, Any]]:
    """Values by key that stand for all trials of a space when settings are checked.

    Each end and choice of every key, with each of every other key: where settings do not fit together it is nearly
    always two of them, and all corners would be thousands.
    """
    keys = sorted(space)
    for pair in combinations(keys, 2) if len(keys) > 1 else [tuple(keys)]:
        for values in product(*(space[key].ends() for key in pair)):
            yield dict(zip(pair, values, strict=True))


def laid_over(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with values laid over them, by key; what is on the way to a value and not there becomes a map."""
    result = dict(settings)
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if rest:
            inside = result.get(first)
            value = laid_over(inside if isinstance(inside, Mapping) else {}, {rest: value})
        result[first] = value
    return result


def named(values: Mapping[str, Any]) -> str:
    """Values by key in words: "training.epochs 2, training.learning_rate 3.1e-05"."""
    return ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
