"""Standard errors, intervals and paired tests over the records and seeds of a benchmark.

One picture underlies everything: a metric of a recipe is an array `values` [seeds, records] with NaN where a record
does not count (SEP's score is conditional on the witness following the instruction), and its value is the mean over
seeds of the mean over the counted records. So a conditional score is a ratio, and every resample recomputes it from
numerators and denominators. Records are the sampling unit: the same records are answered at every seed, so a record
with all its seeds is one cluster. Seeds are too few to be resampled; their spread is reported as a number of its own.

Sources: linearised (delta-method) cluster standard error, Cochran, *Sampling Techniques*, ch. 6 and 9; Wilson (1927),
with the effective sample size of Korn and Graubard (1998) under clustering; BCa bootstrap, Efron (1987); permutation
p-value with the added one, Phipson and Smyth (2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from bulwark.errors import BulwarkError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 4_000_000  # numbers held at once while resampling


class StatisticsError(BulwarkError):
    """The records do not allow the comparison that was asked for."""


@dataclass(frozen=True)
class Sample:
    """One metric of one recipe and model: `values` [seeds, records by sorted id], NaN where a record does not count."""

    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, with its error over records.

    `n` counts the records that enter at one seed at least; `seed_spread` is the standard deviation (ddof 1) of the
    per-seed values, None for one seed. `value` is None (and so is what depends on it) if at some seed no record counts.
    """

    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None
    n: int
    by_seed: dict[int, float | None]
    seed_spread: float | None


@dataclass(frozen=True)
class Comparison:
    """First recipe minus second, over the same records; see `compare`. Everything but `n` is None if undefined."""

    difference: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    by_seed: dict[int, float | None]
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))  # [resamples] bootstrap differences
    swaps: np.ndarray = field(default_factory=lambda: np.empty(0))  # [resamples] differences after random swaps
    # [records] leave-one-out differences about their mean, sign reversed
    influences: np.ndarray = field(default_factory=lambda: np.empty(0))


# --- one recipe ----------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and its standard error: sample deviation (ddof 1) / sqrt(n), as `scipy.stats.sem`.

    The mean of nothing and the error of fewer than two values are None.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return None, None
    return float(array.mean()), float(stats.sem(array)) if array.size > 1 else None


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the interval of a mean: Wilson's for rates (all values 0 or 1), Student's otherwise; None if undefined."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return None
    if is_rate(array):
        return wilson(float(array.mean()), array.size, confidence)
    if array.size < 2:
        return None
    return _student(float(array.mean()), float(stats.sem(array)), array.size, confidence)


def wilson(rate: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a rate seen on `n` records; `n` may be an effective, fractional number."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def sample(rows: Mapping[int, Sequence[Mapping[str, Any]]], metric: str, where: str = "") -> Sample:
    """Take the column `metric` out of {seed: rows}; a row has an "id", and null where it does not count.

    Raises StatisticsError if the seeds do not hold the same records.
    """
    seeds = tuple(sorted(rows))
    columns = {seed: {row["id"]: row[metric] for row in rows[seed]} for seed in seeds}
    ids = tuple(sorted(columns[seeds[0]]))
    for seed in seeds[1:]:
        _same_records(ids, columns[seed], f"{where}seeds {seeds[0]} and {seed}")
    values = [[np.nan if columns[seed][key] is None else float(columns[seed][key]) for key in ids] for seed in seeds]
    return Sample(seeds, ids, np.array(values, dtype=float).reshape(len(seeds), len(ids)))


def estimate(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean over seeds with its standard error clustered by record.

    With per-seed means r_s over D_s counted records, record i has the influence z_i = mean_s (x_is - r_s) d_is / D_s
    and SE² = m / (m - 1) · Σ z_i², m the number of records that count anywhere: for one seed exactly `mean_and_error`.
    """
    counted = ~np.isnan(sample.values)
    totals = counted.sum(axis=1)
    n = int(counted.any(axis=0).sum())
    by_seed = {
        seed: float(row[here].mean()) if here.any() else None
        for seed, row, here in zip(sample.seeds, sample.values, counted, strict=True)
    }
    if not len(totals) or not totals.all():
        return Estimate(None, None, None, n, by_seed, None)
    means = np.array(list(by_seed.values()))
    value = float(means.mean())
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    if n < 2:
        interval = wilson(value, n, confidence) if is_rate(sample.values) else None
        return Estimate(value, None, interval, n, by_seed, spread)
    influence = np.where(counted, sample.values - means[:, None], 0.0) / totals[:, None]
    stderr = float(np.sqrt(n / (n - 1) * np.square(influence.mean(axis=0)).sum()))
    if is_rate(sample.values):
        interval = wilson(value, _effective_n(value, stderr, n), confidence)
    else:
        interval = _student(value, stderr, n, confidence)
    return Estimate(value, stderr, interval, n, by_seed, spread)


def threshold_p_value(estimate: Estimate, threshold: float, side: str, rate: bool) -> float | None:
    """One-sided p-value of "the true value lies beyond `threshold`" (side "at_least" or "at_most"): the score test.

    For rates it inverts Wilson's interval (variance under the threshold); otherwise it is the t-test.
    """
    if estimate.value is None or estimate.stderr is None:
        return None
    distance = (estimate.value - threshold) * (1 if side == "at_least" else -1)
    if rate and 0 < threshold < 1:
        error = np.sqrt(threshold * (1 - threshold) / _effective_n(estimate.value, estimate.stderr, estimate.n))
        return float(stats.norm.sf(distance / error))
    if estimate.stderr == 0:
        return None
    return float(stats.t.sf(distance / estimate.stderr, df=estimate.n - 1))


# --- two recipes ---------------------------------------------------------------------------------------------------


def compare(
    first: Sample, second: Sample, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two recipes over the same records: first minus second, each the mean over seeds.

    interval: BCa bootstrap over records, a record taking all seeds of both recipes with it.
    p_value: two-sided permutation test; within a record the recipes' rows are swapped at all seeds together.
    A recipe with one seed (the base model) is held against every seed of the other. Raises StatisticsError if the
    records, or seeds other than that, differ.

    Records with equal values are exchangeable, so both resamplings draw counts of distinct patterns, which is the
    same distribution and independent of the number of records when the metric is a rate.
    """
    _same_records(first.ids, second.ids, "the two recipes")
    seeds, a, b = _aligned(first, second)
    counted = np.stack([~np.isnan(a), ~np.isnan(b)])  # [2, seeds, records]
    values = np.where(counted, np.stack([a, b]), 0.0)
    n = int(counted.any(axis=1).all(axis=0).sum()) if a.size else 0
    if not counted.sum(axis=2).all():
        return Comparison(None, None, None, n, dict.fromkeys(seeds))

    patterns, counts = _patterns(values, counted)
    size = len(seeds)
    numerators, denominators = patterns[:, : 2 * size], patterns[:, 2 * size :]
    total, base = counts @ numerators, counts @ denominators
    per_seed = (total / base)[:size] - (total / base)[size:]
    difference = float(per_seed.mean())
    rng = np.random.default_rng(seed)
    draws = _bootstrap(rng, numerators, denominators, counts, resamples)
    swaps = _permutations(rng, numerators, denominators, counts, resamples)

    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = _difference(total - numerators, base - denominators)
    left_out = np.where(np.isfinite(left_out), left_out, difference)
    influences = np.repeat(np.average(left_out, weights=counts) - left_out, counts)
    smallest = int(counted.sum(axis=2).min())
    interval = _bca(difference, draws, influences, confidence)
    if is_rate(values[counted]):
        interval = _widened(difference, interval, draws, smallest, confidence)
    by_seed = dict(zip(seeds, per_seed.tolist(), strict=True))
    return Comparison(difference, interval, _p_value(difference, swaps), n, by_seed, draws, swaps, influences)


def mean_comparison(parts: Sequence[Comparison], confidence: float = CONFIDENCE) -> Comparison:
    """Average comparisons on independent models, each weighing the same; `n` is their sum, `by_seed` stays empty.

    The parts must come from different random `seed`s of `compare`, or their resamples would move together.
    """
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    if any(part.difference is None for part in parts):
        return Comparison(None, None, None, n, {})
    difference = float(np.mean([part.difference for part in parts]))
    shortest = min(len(part.draws) for part in parts)
    draws = np.mean([part.draws[:shortest] for part in parts], axis=0)
    swaps = np.mean([part.swaps[:shortest] for part in parts], axis=0)
    influences = np.concatenate([part.influences for part in parts]) / len(parts)
    interval = _bca(difference, draws, influences, confidence)
    return Comparison(difference, interval, _p_value(difference, swaps), n, {}, draws, swaps, influences)


# --- helpers -------------------------------------------------------------------------------------------------------


def is_rate(values: np.ndarray) -> bool:
    """Whether every value that is not NaN is 0 or 1."""
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _student(value: float, stderr: float, n: int, confidence: float) -> tuple[float, float]:
    half = float(stats.t.ppf(0.5 + confidence / 2, df=n - 1)) * stderr
    return value - half, value + half


def _effective_n(rate: float, stderr: float, n: int) -> float:
    """The number of independent records with the same standard error; `n` where the rate is 0 or 1 throughout."""
    return rate * (1 - rate) / stderr**2 * n / (n - 1) if stderr > 0 and 0 < rate < 1 else float(n)


def _same_records(ids: Sequence[str], others: Any, what: str) -> None:
    differing = sorted(set(ids) ^ set(others))
    if differing:
        shown = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        raise StatisticsError(
            f"{what} were scored on different records ({len(differing)} differ: {shown}). A paired comparison needs "
            "the same records: score both again from the same data file."
        )


def _aligned(first: Sample, second: Sample) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Bring both to the same seeds [seeds, records]; one seed stands against every seed of the other."""
    if first.seeds != second.seeds and 1 not in (len(first.seeds), len(second.seeds)):
        raise StatisticsError(
            f"the recipes were run with different seeds ({list(first.seeds)} and {list(second.seeds)}). Run both with "
            "the same seeds; only a recipe with a single seed can stand against several."
        )
    a, b = np.broadcast_arrays(first.values, second.values)
    return max(second.seeds, first.seeds, key=len), a, b


def _patterns(values: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct records [patterns, numerators of both recipes' seeds + denominators] and how often each occurs."""
    records = np.concatenate([values.reshape(-1, values.shape[-1]), counted.reshape(-1, values.shape[-1])]).T
    return np.unique(records, axis=0, return_counts=True)


def _difference(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """First minus second from sums [..., 2 * seeds] of the first recipe's seeds, then the second's."""
    ratios = numerators / denominators
    half = ratios.shape[-1] // 2
    return ratios[..., :half].mean(axis=-1) - ratios[..., half:].mean(axis=-1)


def _bootstrap(rng, numerators, denominators, counts, resamples) -> np.ndarray:
    n = counts.sum()
    draws = []
    for size in chunks(resamples, len(counts)):
        weights = rng.multinomial(n, counts / n, size=size)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws.append(_difference(weights @ numerators, weights @ denominators))
    return np.concatenate(draws)


def _permutations(rng, numerators, denominators, counts, resamples) -> np.ndarray:
    half = numerators.shape[1] // 2
    swapped_numerators, swapped_denominators = (np.roll(sums, half, axis=1) for sums in (numerators, denominators))
    results = []
    for size in chunks(resamples, len(counts)):
        swapped = rng.binomial(counts, 0.5, size=(size, len(counts)))
        kept = counts - swapped
        with np.errstate(divide="ignore", invalid="ignore"):
            sums = kept @ numerators + swapped @ swapped_numerators
            results.append(_difference(sums, kept @ denominators + swapped @ swapped_denominators))
    return np.concatenate(results)


def chunks(total: int, width: int) -> list[int]:
    """Numbers of resamples to draw at once, `total` in all, each of `width` numbers."""
    step = max(1, _CHUNK // max(1, width))
    return [min(step, total - start) for start in range(0, total, step)]


def _bca(value: float, draws: np.ndarray, influences: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Bias-corrected and accelerated interval; the percentile interval where the correction is undefined.

    Draws in which no record counts are undefined and left out.
    """
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return None
    levels = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    below = (np.sum(draws < value - 1e-12) + 0.5 * np.sum(np.abs(draws - value) <= 1e-12)) / draws.size
    spread = float(np.square(influences).sum())
    if 0 < below < 1 and spread > 0:
        bias = stats.norm.ppf(below)
        acceleration = float((influences**3).sum()) / (6 * spread**1.5)
        z = bias + stats.norm.ppf(levels)
        levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _widened(value, interval, draws, n, confidence):
    """Where no resample differs, give the difference of rates the room that Wilson gives a rate of 0 out of `n`.

    Without it ten records that all agree would prove equality exactly.
    """
    if interval is None or np.ptp(draws[np.isfinite(draws)]) > 1e-12:
        return interval
    room = wilson(0.0, n, confidence)[1]
    return max(-1.0, value - room), min(1.0, value + room)


def _p_value(value: float, swaps: np.ndarray) -> float:
    # A swap that leaves one side without any counted record has no difference: it counts as one as extreme.
    extreme = np.sum(~(np.abs(swaps) < abs(value) - 1e-12))
    return float((extreme + 1) / (len(swaps) + 1))
