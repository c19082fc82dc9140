"""The true Pareto front of trials, its hypervolume, and which of its trials is chosen. All values are minimised."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bulwark.evaluation.statistics import wilson

KL_RANGE = (1e-4, 1.0)  # in nats, between which log KL counts


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse and somewhere better."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the points that none dominates, in their order; of equal ones all."""
    return [number for number, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that two-dimensional points dominate up to `reference`; those beyond it count nothing."""
    inside = sorted({point for point in points if point[0] < reference[0] and point[1] < reference[1]})
    area, height = 0.0, reference[1]
    for x, y in inside:
        if y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area


def log_share(kl: float) -> float:
    """Where a KL lies on a logarithmic scale from 1e-4 nats (0, and all below) to 1 nat (1).

    On a linear scale nearly all of a front lies at one edge: 0.01 and 0.001 nats differ by 0.009 of it.
    """
    low, high = KL_RANGE
    return math.log(max(kl, low) / low) / math.log(high / low)


def front_volume(trials: Sequence[tuple[float, float]]) -> float:
    """The hypervolume of (KL in nats, refusal rate), KL as `log_share` has it, up to (1 nat, everything refused)."""
    return hypervolume([(log_share(kl), rate) for kl, rate in trials], (1.0, 1.0))


def chosen(points: Sequence[tuple[float, ...]], kl: Sequence[float], kl_at_most: float | None) -> int:
    """The number of the trial that is chosen: the smallest of `points`, in order of importance, at KL ≤ `kl_at_most`.

    Unlike the front this is lexicographic. If none keeps the bound it is the one of lowest KL.
    """
    allowed = [number for number in range(len(points)) if kl_at_most is None or kl[number] <= kl_at_most]
    if not allowed:
        return min(range(len(points)), key=lambda number: (kl[number], points[number]))
    return min(allowed, key=lambda number: (*points[number], kl[number]))


def surely_dominated(
    refusals: int, asked: int, kl: float, known: Sequence[tuple[float, float]], confidence: float
) -> bool:
    """Whether a trial can be given up after `asked` prompts: (lower bound of its rate, KL) is dominated by `known`.

    known: (refusal rate, KL) of whole trials. The bound is Wilson's, one look at the given two-sided confidence.
    """
    low, _ = wilson(refusals / asked, asked, confidence)
    return any(rate < low and other <= kl for rate, other in known)
