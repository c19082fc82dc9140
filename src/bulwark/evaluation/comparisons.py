"""Paired comparisons of two recipes over the records that both answered, on one model or on several at once.

The picture is that of `bulwark.evaluation.statistics`. A record takes all its seeds and all its models with it, in the
interval and in the test: models that answer the same records share their difficulty, so they are not independent. So
does a fact take all its records with it: below, a record is a cluster of them.

Interval of a difference of rates: the two Wilson intervals joined, with the correlation of the recipes over records
(Newcombe 1998, method 10; Zou and Donner 2008), which keeps its coverage where a rate is near 0 or 1. Of other means:
BCa bootstrap over records (Efron 1987). Test of no difference: within a record the recipes' rows are swapped at all
seeds and models together; p-value with the added one (Phipson and Smyth 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from bulwark.evaluation.statistics import (
    CONFIDENCE,
    Sample,
    StatisticsError,
    chunks,
    estimate,
    influences,
    is_rate,
    p_beyond,
    same_facts,
    same_records,
    summed,
    together,
    wilson,
)

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """First recipe minus second, over the same records; see `compare`. Everything but `n` is None if undefined.

    at: the interval at another confidence.
    """

    difference: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    by_seed: dict[Any, float | None]
    at: Callable[[float], tuple[float, float] | None]
    resamples: int

    def p_above(self, bound: float) -> float | None:
        """Two-sided p-value of "the true difference is above `bound`"."""
        return p_beyond(self.at, bound, "above", floor=1 / (self.resamples + 1))

    def p_below(self, bound: float) -> float | None:
        """Two-sided p-value of "the true difference is below `bound`"."""
        return p_beyond(self.at, bound, "below", floor=1 / (self.resamples + 1))


def compare(
    first: Sample, second: Sample, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two recipes over the same records: first minus second, each the mean over seeds.

    A recipe with one seed (the base model) is held against every seed of the other. `p_value` is of no difference.
    Raises StatisticsError if the records, or seeds other than that, differ.

    Records with equal values are exchangeable, so both resamplings draw counts of distinct patterns, which is the
    same distribution and independent of the number of records when the metric is a rate.
    """
    same_records(first.ids, second.ids, "the two recipes")
    same_facts(first.facts, second.facts, "the two recipes")
    first, second = _aligned(first, second)
    counted = np.stack([~np.isnan(first.values), ~np.isnan(second.values)])  # [2, seeds, records]
    n = int(counted.any(axis=1).all(axis=0).sum()) if counted.size else 0
    if not counted.size or not counted.sum(axis=2).all():
        return Comparison(None, None, None, n, dict.fromkeys(first.seeds), lambda _: None, resamples)

    values = np.where(counted, np.stack([first.values, second.values]), 0.0)
    counts = summed(counted, first.clusters)
    sums = _Sums.of(summed(values, first.clusters), counts, first.shares)
    total = sums.counts @ sums.numerators, sums.counts @ sums.denominators
    per_seed = np.subtract(*np.split(total[0] / total[1], 2))
    difference = float(first.shares @ per_seed)
    rng = np.random.default_rng(seed)
    if is_rate(values[counted]):
        at = _joined_wilson(first, second)
    else:
        agreed = wilson(0.0, int((counts > 0).sum(axis=2).min()))[1] * float(np.ptp(values[counted]))
        at = _bca(difference, _bootstrap(rng, sums, resamples), _left_out(sums, total, difference), agreed)
    p_value = _p_value(difference, _permutations(rng, sums, resamples))
    by_seed = dict(zip(first.seeds, per_seed.tolist(), strict=True))
    return Comparison(difference, at(confidence), p_value, n, by_seed, at, resamples)


def compare_over_models(
    pairs: Sequence[tuple[Sample, Sample]], resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two recipes on several models, each weighing the same; `pairs` holds both recipes' samples per model.

    Records that several models answered are resampled and swapped for all of these together. Raises StatisticsError as
    `compare` does, of each pair.
    """
    for first, second in pairs:
        same_records(first.ids, second.ids, "the two recipes")
    aligned = [_aligned(*pair) for pair in pairs]
    return compare(*(together(side) for side in zip(*aligned, strict=True)), resamples, seed, confidence)


def clearly_best(samples: Mapping[str, Sample], higher: bool, confidence: float = CONFIDENCE) -> str | None:
    """The recipe whose mean is best and differs from that of every other one by the test of `compare`; else None.

    None as well where there is nothing to compare: one recipe, other records, other seeds than `compare` can align, or
    a metric that is undefined. Each comparison has to be significant, so that their number needs no correction; which
    recipe is tested is seen from the data, for which two sides of the test pay.
    """
    values = {name: estimate(sample).value for name, sample in samples.items()}
    of_records = {(sample.ids, sample.facts) for sample in samples.values()}
    of_seeds = {sample.seeds for sample in samples.values() if len(sample.seeds) > 1}
    if len(samples) < 2 or None in values.values() or len(of_records) > 1 or len(of_seeds) > 1:
        return None
    best, *others = sorted(samples, key=lambda name: -values[name] if higher else values[name])  # the nearest first
    beaten = (compare(samples[best], samples[other]).p_value for other in others)
    return best if all(p_value is not None and p_value < 1 - confidence for p_value in beaten) else None


# --- helpers ---


@dataclass(frozen=True)
class _Sums:
    """The distinct patterns of records, and how often each occurs.

    numerators, denominators [patterns, 2 * seeds]: of the first recipe's seeds, then of the second's. counts
    [patterns]. shares [seeds]: weights of the seeds.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    counts: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, counted: np.ndarray, shares: np.ndarray) -> _Sums:
        records = np.concatenate([part.reshape(-1, values.shape[-1]) for part in (values, counted)]).T
        patterns, counts = np.unique(records, axis=0, return_counts=True)
        return cls(*np.split(patterns, 2, axis=1), counts, shares)

    def difference(self, numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
        """First minus second, from sums [..., 2 * seeds]; NaN where a seed has no record that counts."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = np.split(numerators / denominators, 2, axis=-1)
            return (first - second) @ self.shares


def _aligned(first: Sample, second: Sample) -> tuple[Sample, Sample]:
    """Bring both to the same seeds; one seed stands against every seed of the other."""
    if first.seeds != second.seeds and 1 not in (len(first.seeds), len(second.seeds)):
        raise StatisticsError(
            f"the recipes were run with different seeds ({list(first.seeds)} and {list(second.seeds)}). Run both with "
            "the same seeds; only a recipe with a single seed can stand against several."
        )
    longer = max(second, first, key=lambda sample: len(sample.seeds))
    a, b = np.broadcast_arrays(first.values, second.values)
    given = longer.weights, first.facts
    return Sample(longer.seeds, first.ids, a, *given), Sample(longer.seeds, first.ids, b, *given)


def _joined_wilson(first: Sample, second: Sample) -> Callable[[float], tuple[float, float]]:
    one, other = estimate(first), estimate(second)
    moves, counter_moves = influences(first), influences(second)
    size = float(np.sqrt(np.square(moves).sum() * np.square(counter_moves).sum()))
    correlation = float(moves @ counter_moves) / size if size > 0 else 0.0

    def room(up: float, down: float) -> float:
        return float(np.sqrt(max(0.0, up * up - 2 * correlation * up * down + down * down)))

    def at(confidence: float) -> tuple[float, float]:
        (low, high), (other_low, other_high) = one.at(confidence), other.at(confidence)
        difference = one.value - other.value
        below = room(one.value - low, other_high - other.value)
        above = room(high - one.value, other.value - other_low)
        return max(-1.0, difference - below), min(1.0, difference + above)

    return at


def _bca(
    value: float, draws: np.ndarray, moves: np.ndarray, room: float
) -> Callable[[float], tuple[float, float] | None]:
    """Bias-corrected and accelerated intervals; percentile intervals where the correction is undefined.

    Draws in which no record counts are undefined and left out. Where no resample differs, the interval is `room` on
    either side: what Wilson gives a rate of 0, times the range of the values. Without it ten records that all agree
    would prove equality exactly.
    """
    draws = np.sort(draws[np.isfinite(draws)])
    if not draws.size:
        return lambda _: None
    if np.ptp(draws) <= 1e-12:
        return lambda _: (value - room, value + room)
    below = (np.sum(draws < value - 1e-12) + 0.5 * np.sum(np.abs(draws - value) <= 1e-12)) / draws.size
    spread = float(np.square(moves).sum())

    def at(confidence: float) -> tuple[float, float]:
        levels = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
        if 0 < below < 1 and spread > 0:
            bias = stats.norm.ppf(below)
            acceleration = float((moves**3).sum()) / (6 * spread**1.5)
            z = bias + stats.norm.ppf(levels)
            # Beyond its pole the formula would turn round: there the level is that of the outermost draw.
            levels = stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-9))
        low, high = np.quantile(draws, levels)
        return float(low), float(high)

    return at


def _left_out(sums: _Sums, total: tuple[np.ndarray, np.ndarray], difference: float) -> np.ndarray:
    """Leave-one-out differences about their mean, sign reversed [records]."""
    left_out = sums.difference(total[0] - sums.numerators, total[1] - sums.denominators)
    left_out = np.where(np.isfinite(left_out), left_out, difference)
    return np.repeat(np.average(left_out, weights=sums.counts) - left_out, sums.counts)


def _bootstrap(rng: np.random.Generator, sums: _Sums, resamples: int) -> np.ndarray:
    n = sums.counts.sum()
    draws = []
    for size in chunks(resamples, len(sums.counts)):
        weights = rng.multinomial(n, sums.counts / n, size=size)
        draws.append(sums.difference(weights @ sums.numerators, weights @ sums.denominators))
    return np.concatenate(draws)


def _permutations(rng: np.random.Generator, sums: _Sums, resamples: int) -> np.ndarray:
    half = len(sums.shares)
    swapped_numerators, swapped_denominators = (
        np.roll(part, half, axis=1) for part in (sums.numerators, sums.denominators)
    )
    results = []
    for size in chunks(resamples, len(sums.counts)):
        swapped = rng.binomial(sums.counts, 0.5, size=(size, len(sums.counts)))
        kept = sums.counts - swapped
        numerators = kept @ sums.numerators + swapped @ swapped_numerators
        results.append(sums.difference(numerators, kept @ sums.denominators + swapped @ swapped_denominators))
    return np.concatenate(results)


def _p_value(value: float, swaps: np.ndarray) -> float:
    # A swap that leaves one side without any counted record has no difference: it counts as one as extreme.
    extreme = np.sum(~(np.abs(swaps) < abs(value) - 1e-12))
    return float((extreme + 1) / (len(swaps) + 1))
