"""Points of a scrambled Sobol sequence, one at a time and without numpy: a plan computes them whenever it is made.

Direction numbers: Joe and Kuo, "Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci.
Comput. 30 (2008), the file new-joe-kuo-6. Scrambling: nested and uniform (Owen, "Randomly permuted (t,m,s)-nets and
(t,s)-sequences", 1995): the flip of a bit depends on all bits above it, here through SHA-256. So the first 2^m points
hit each of 2^m equal intervals of every coordinate exactly once, and a point never depends on how many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

BITS = 32
# (degree, inner coefficients of the primitive polynomial as bits, first direction numbers) of dimensions 2, 3, …
_PRIMITIVE = (
    (1, 0, (1,)),
    (2, 1, (1, 3)),
    (3, 1, (1, 3, 1)),
    (3, 2, (1, 1, 1)),
    (4, 1, (1, 1, 3, 3)),
    (4, 4, (1, 3, 5, 13)),
    (5, 2, (1, 1, 5, 5, 17)),
    (5, 4, (1, 1, 5, 5, 5)),
    (5, 7, (1, 1, 7, 11, 19)),
    (5, 11, (1, 1, 5, 1, 1)),
    (5, 13, (1, 1, 1, 3, 11)),
    (5, 14, (1, 3, 5, 5, 31)),
    (6, 1, (1, 3, 3, 9, 7, 49)),
    (6, 13, (1, 1, 1, 15, 21, 21)),
    (6, 16, (1, 3, 1, 13, 27, 49)),
)
DIMENSIONS = 1 + len(_PRIMITIVE)


def point(number: int, seeds: Sequence[str]) -> list[float]:
    """Point `number` (from 0, below 2^32) in as many dimensions as there are seeds of their scrambling.

    Each coordinate lies above 0 and below 1.
    """
    return [(_scrambled(unscrambled(number, dimension), seed) + 0.5) / 2**BITS for dimension, seed in enumerate(seeds)]


def unscrambled(number: int, dimension: int) -> int:
    """Coordinate `dimension` (from 0) of point `number` of the plain sequence, times 2^32.

    The points are taken in the order of their numbers, not of the Gray code: the first 2^m are the same either way.
    """
    value = 0
    for bit, direction in enumerate(_directions(dimension)):
        if number >> bit & 1:
            value ^= direction
    return value


def _scrambled(value: int, seed: str) -> int:
    result = 0
    for bit in reversed(range(BITS)):
        above = value >> (bit + 1)
        flip = hashlib.sha256(f"{seed}/{bit}/{above}".encode()).digest()[0] & 1
        result |= ((value >> bit & 1) ^ flip) << bit
    return result


@cache
def _directions(dimension: int) -> tuple[int, ...]:
    """The direction numbers of a dimension, times 2^32, by the recurrence of Bratley and Fox (1988)."""
    if dimension == 0:
        return tuple(1 << (BITS - 1 - bit) for bit in range(BITS))
    degree, coefficients, first = _PRIMITIVE[dimension - 1]
    found = [number << (BITS - 1 - bit) for bit, number in enumerate(first)]
    for bit in range(degree, BITS):
        value = found[bit - degree] ^ (found[bit - degree] >> degree)
        for inner in range(1, degree):
            if coefficients >> (degree - 1 - inner) & 1:
                value ^= found[bit - inner]
        found.append(value)
    return tuple(found)
