"""Standard errors and intervals over the records and seeds of a benchmark; two recipes are compared in `comparisons`.

One picture underlies everything: a metric of a recipe is an array `values` [seeds, records] with NaN where a record
does not count (SEP's score is conditional on the witness following the instruction), and its value is the mean over
seeds of the mean over the counted records. So a conditional score is a ratio. Records are the sampling unit: the same
records are answered at every seed, so a record with all its seeds is one cluster; and where several models answered the
same records, a record with all its models is one. Where a benchmark says which fact a record asks for, all records of a
fact are one cluster: a model that knows it answers them all. Seeds are too few to be resampled; their spread is
reported as a number of its own.

Sources: linearised (delta-method) cluster standard error, Cochran, *Sampling Techniques*, ch. 6 and 9; Wilson (1927),
with the effective sample size of Korn and Graubard (1998) under clustering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import stats

from bulwark.errors import BulwarkError

CONFIDENCE = 0.95
FACT = "fact"  # the column of a row that says what its record asks for
_NO_CONFIDENCE, _SURE = 1e-9, 8.0  # normal quantiles between which a p-value is looked for
_CHUNK = 4_000_000  # numbers held at once while resampling


class StatisticsError(BulwarkError):
    """The records do not allow the comparison that was asked for."""


@dataclass(frozen=True)
class Sample:
    """One metric of one recipe: `values` [seeds, records by sorted id], NaN where a record does not count.

    weights [seeds]: of the seeds in the mean over them, adding up to 1; equal if left out. facts [records]: what each
    record asks for, the records of a fact being one cluster; each its own if left out.
    """

    seeds: tuple[Any, ...]
    ids: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray | None = None
    facts: tuple[str, ...] | None = None

    @cached_property
    def shares(self) -> np.ndarray:
        """The weights [seeds], also where none were given."""
        return np.full(len(self.seeds), 1 / max(1, len(self.seeds))) if self.weights is None else self.weights

    @cached_property
    def clusters(self) -> np.ndarray:
        """The number of each record's cluster [records], from 0."""
        return numbered(self.facts, len(self.ids))


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, with its error over records.

    `n` counts the records that enter at one seed at least; `seed_spread` is the standard deviation (ddof 1) of the
    per-seed values, None for one seed. `value` is None (and so is what depends on it) if at some seed no record counts.
    clusters: how many of them the counted records make up; None for as many as there are records. rate: every record's
    value is 0 or 1. stated: the interval that a file gives at `CONFIDENCE`, where the records are not known.
    """

    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None
    n: int
    by_seed: dict[Any, float | None]
    seed_spread: float | None
    rate: bool = False
    stated: tuple[float, float] | None = None
    clusters: int | None = None

    def at(self, confidence: float) -> tuple[float, float] | None:
        """The interval at another confidence: Wilson's for a rate, Student's otherwise; None if undefined.

        One of a file is made wider or narrower as a normal distribution would be, so that it always says the same as
        the file: a standard error can be 0 or missing, or fit an interval badly that leans to one side.
        """
        if self.value is None:
            return None
        if self.stated is not None:
            wider = float(stats.norm.ppf(0.5 + confidence / 2) / stats.norm.ppf(0.5 + CONFIDENCE / 2))
            low, high = (self.value + wider * (bound - self.value) for bound in self.stated)
            return low, high
        independent = self.n if self.clusters is None else self.clusters
        if self.rate:
            effective = _effective_n(self.value, self.stderr or 0.0, independent)
            if independent < self.n:  # however alike facts happen to be, no more was observed than this
                effective = min(effective, self.n * max(1, len(self.by_seed)))
            return wilson(self.value, effective, confidence)
        return None if self.stderr is None else _student(self.value, self.stderr, independent, confidence)


def mean_of_independent(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of several estimates from data sets that have no record in common: squared errors add up.

    Its interval is a normal distribution's; it is of the seeds that all have, and of all records.
    """
    seeds = [seed for seed in estimates[0].by_seed if all(seed in one.by_seed for one in estimates)]
    by_seed = {seed: _mean_if_known([one.by_seed[seed] for one in estimates]) for seed in seeds}
    known = [value for value in by_seed.values() if value is not None]
    spread = float(np.std(known, ddof=1)) if len(known) == len(seeds) > 1 else None
    value, errors = _mean_if_known([one.value for one in estimates]), [one.stderr for one in estimates]
    stated = [error for error in errors if error is not None]
    error, interval = None, None
    if value is not None and len(stated) == len(errors):
        error = sum(one**2 for one in stated) ** 0.5 / len(stated)
        wide = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * error
        interval = value - wide, value + wide
    return Estimate(value, error, interval, sum(one.n for one in estimates), by_seed, spread)


def _mean_if_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


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
    # At the ends the bound is the end itself, not what rounding leaves of it.
    return float(max(0.0, centre - half)) if rate > 0 else 0.0, float(min(1.0, centre + half)) if rate < 1 else 1.0


def sample(rows: Mapping[int, Sequence[Mapping[str, Any]]], metric: str, where: str = "") -> Sample:
    """Take the column `metric` out of {seed: rows}; a row has an "id", and null where it does not count.

    It may have a "fact". Raises StatisticsError if the seeds do not hold the same records, on the same facts.
    """
    seeds = tuple(sorted(rows))
    columns = {seed: {row["id"]: row[metric] for row in rows[seed]} for seed in seeds}
    ids = tuple(sorted(columns[seeds[0]]))
    for seed in seeds[1:]:
        same_records(ids, columns[seed], f"{where}seeds {seeds[0]} and {seed}")
    values = [[np.nan if columns[seed][key] is None else float(columns[seed][key]) for key in ids] for seed in seeds]
    found = [_facts(rows[seed], ids) for seed in seeds]
    for seed, other in zip(seeds[1:], found[1:], strict=True):
        same_facts(found[0], other, f"{where}seeds {seeds[0]} and {seed}")
    return Sample(seeds, ids, np.array(values, dtype=float).reshape(len(seeds), len(ids)), facts=found[0])


def together(samples: Sequence[Sample]) -> Sample:
    """Put the samples of several models into one: each model weighs the same, and so do its seeds.

    Records are matched by id. One that a model was not asked does not count for it. Raises StatisticsError if two of
    them say of a record that it asks for different facts: it then is not the same record.
    """
    ids = tuple(sorted(set().union(*(sample.ids for sample in samples))))
    place = {key: index for index, key in enumerate(ids)}
    rows = []
    for sample in samples:
        values = np.full((len(sample.seeds), len(ids)), np.nan)
        values[:, [place[key] for key in sample.ids]] = sample.values
        rows.append(values)
    seeds = tuple((index, seed) for index, sample in enumerate(samples) for seed in sample.seeds)
    weights = np.concatenate([sample.shares for sample in samples]) / len(samples)
    known: dict[str, str] = {}
    for sample in samples:
        for key, fact in zip(sample.ids, sample.facts or sample.ids, strict=True):
            if known.setdefault(key, fact) != fact:
                raise StatisticsError(
                    f'The models do not say alike which fact the record "{key}" asks for ("{known[key]}", "{fact}"): '
                    "they were asked different records of one id, or one of the scores files is old. Score all models "
                    "on the same data file, or give different records different ids."
                )
    facts = tuple(known[key] for key in ids) if any(sample.facts for sample in samples) else None
    return Sample(seeds, ids, np.concatenate(rows), weights, facts)


def averaged(samples: Mapping[str, Sample]) -> Sample:
    """The mean over samples of the same records and seeds, by name, record for record.

    A record's mean is over the samples in which it counts. Its estimate is the mean over samples and seeds, with a
    record and all its samples as one cluster. Raises StatisticsError for records or seeds that differ.
    """
    first, *others = samples
    for name in others:
        same_records(samples[first].ids, samples[name].ids, f"{first} and {name}")
        same_facts(samples[first].facts, samples[name].facts, f"{first} and {name}")
        if samples[name].seeds != samples[first].seeds:
            raise StatisticsError(
                f"{name} was measured at the seeds {list(samples[name].seeds)}, {first} at "
                f"{list(samples[first].seeds)}. Measure both at the same seeds."
            )
    values = np.stack([sample.values for sample in samples.values()])
    counted = ~np.isnan(values)
    totals, counts = np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0)
    mean = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return Sample(samples[first].seeds, samples[first].ids, mean, facts=samples[first].facts)


def at_seeds(sample: Sample, seeds: tuple[Any, ...]) -> Sample:
    """A recipe that was measured at one seed, such as the base model, as measured at each of `seeds`; others as is."""
    if len(sample.seeds) > 1 or len(seeds) < 2:
        return sample
    return replace(sample, seeds=seeds, values=np.repeat(sample.values, len(seeds), axis=0), weights=None)


def estimate(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean over seeds with its standard error clustered by record, or by fact.

    With per-seed means r_s over D_s counted records and weights w_s, cluster i has the influence
    z_i = Σ_s w_s Σ_j (x_js - r_s) d_js / D_s over its records j, and SE² = m / (m - 1) · Σ z_i², m the number of
    clusters that count anywhere: for one seed, where each record is one, exactly `mean_and_error`.
    """
    counted = ~np.isnan(sample.values)
    counting = counted.any(axis=0)
    n, clusters = int(counting.sum()), len(np.unique(sample.clusters[counting]))
    by_seed = {
        seed: float(row[here].mean()) if here.any() else None
        for seed, row, here in zip(sample.seeds, sample.values, counted, strict=True)
    }
    rate = is_rate(sample.values)
    if not len(by_seed) or None in by_seed.values():
        return Estimate(None, None, None, n, by_seed, None, rate, clusters=clusters)
    means = np.array(list(by_seed.values()))
    value = float(sample.shares @ means)
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    spread_of_clusters = np.square(influences(sample)).sum()
    stderr = None if clusters < 2 else float(np.sqrt(clusters / (clusters - 1) * spread_of_clusters))
    found = Estimate(value, stderr, None, n, by_seed, spread, rate, clusters=clusters)
    return replace(found, interval=found.at(confidence))


def influences(sample: Sample) -> np.ndarray:
    """How far each cluster moves the estimate: z_i of `estimate` [clusters]. Every seed has a record that counts."""
    counted = ~np.isnan(sample.values)
    totals = counted.sum(axis=1, keepdims=True)
    means = np.where(counted, sample.values, 0.0).sum(axis=1, keepdims=True) / totals
    return summed(sample.shares @ (np.where(counted, sample.values - means, 0.0) / totals), sample.clusters)


def numbered(facts: Sequence[str] | None, records: int) -> np.ndarray:
    """The numbers of the clusters of so many records [records], from 0: one for each fact, or for each record."""
    return np.arange(records) if facts is None else np.unique(facts, return_inverse=True)[1]


def summed(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums over the records of each cluster, [..., clusters] from [..., records]."""
    count = int(clusters.max(initial=-1)) + 1
    if count == len(clusters):  # each record is one
        return values
    return values @ np.eye(count)[clusters]


def p_beyond(
    at: Callable[[float], tuple[float, float] | None], bound: float, side: Literal["above", "below"], floor: float = 0.0
) -> float | None:
    """Two-sided p-value of "the true value lies above (or below) `bound`": where the interval just leaves it out.

    at: the interval at a confidence. It is below 5 % exactly when the 95 % interval lies wholly on that side. For a
    rate that inverts Wilson's interval, which is the score test, for a mean Student's, the t-test. None if undefined.
    floor: the smallest p-value that the interval's resamples can tell.
    """

    def left_out(z: float) -> bool:
        low, high = at(float(1 - 2 * stats.norm.sf(z))) or (bound, bound)
        return low > bound if side == "above" else high < bound

    if at(CONFIDENCE) is None:
        return None

    if not left_out(_NO_CONFIDENCE):
        return 1.0
    low, high = _NO_CONFIDENCE, _SURE
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left_out(middle) else (low, middle)
    return float(max(floor, 2 * stats.norm.sf(low)))


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


def same_records(ids: Sequence[str], others: Any, what: str) -> None:
    """Raise StatisticsError, naming some of those that differ, if two scores are not over the same records."""
    differing = sorted(set(ids) ^ set(others))
    if differing:
        shown = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        raise StatisticsError(
            f"{what} were scored on different records ({len(differing)} differ: {shown}). A paired comparison needs "
            "the same records: score both again from the same data file."
        )


def same_facts(facts: Sequence[str] | None, others: Sequence[str] | None, what: str) -> None:
    """Raise StatisticsError if the same records are said to ask for other facts."""
    if facts != others:
        raise StatisticsError(
            f"{what} do not say alike which fact each record asks for, so that one of the scores files is old. "
            "Score both again from the same data file."
        )


def _facts(rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> tuple[str, ...] | None:
    """What each record asks for, itself where a row does not say; None where none does."""
    known = {row["id"]: row[FACT] for row in rows if FACT in row}
    return tuple(known.get(key, key) for key in ids) if known else None


def chunks(total: int, width: int) -> list[int]:
    """Numbers of resamples to draw at once, `total` in all, each of `width` numbers."""
    step = max(1, _CHUNK // max(1, width))
    return [min(step, total - start) for start in range(0, total, step)]
