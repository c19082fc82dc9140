"""The order of several defenses by their worst case over attacks and families of benchmarks, and how sure it is.

A defense has for every family and attack the share that is defended, per record and seed, and for every attack the
utility that it leaves. An attack is eligible that loses at most a share of the utility before it
(`bulwark.evaluation.worst_case`); to leave the defense as it is always is. The worst case of a family is its smallest
share over the eligible attacks, that of a defense the smallest over families and attacks. A minimum that is read off
the records that chose it is too small, so that here, too, it is chosen on one half of the records and read on the
other, both ways: of a family the readings are joined by their records, of a defense, whose halves may choose different
families, by their mean.

Interval: percentiles of a bootstrap over records (over facts, where there are) within each half, and over seeds as
blocks, in which everything is chosen anew; all defenses are measured on the same draws, because they answered the same
records. Where that is narrower than the two readings' own intervals joined (Zou and Donner 2008), those count, so that
records that all agree prove nothing exactly.

Two defenses: the interval of their difference joins their intervals, with the correlation of their draws (Zou and
Donner 2008, doi 10.1002/sim.3095); p is where it just leaves out 0. The p-values of all pairs are corrected together by
Holm's procedure (1979). A defense's rank is a range: from one more than the number of defenses that are significantly
better, to the number of all less those significantly worse. Where ranges meet, the order is not significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from bulwark.evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    Sample,
    StatisticsError,
    at_seeds,
    chunks,
    estimate,
    numbered,
    p_beyond,
    same_facts,
    same_records,
)
from bulwark.evaluation.worst_case import halves

RESAMPLES = 4_000
SIGNIFICANT = 0.05
_ROUNDING = 1e-12
_FLAT = 1e-9  # a spread of draws that is none


@dataclass(frozen=True)
class Defense:
    """What was measured of a defense.

    shares: {family: {attack: the share defended per seed and record}}, the same attacks in every family. utility:
    {attack: what it leaves}. before: the name of the attack that leaves the defense as it is.
    """

    shares: Mapping[str, Mapping[str, Sample]]
    utility: Mapping[str, Sample]
    before: str


@dataclass(frozen=True)
class Place:
    """A defense in an order. chosen: (family, attack) by the first and the second half of the records.

    ranks: the first and the last that it may have. draws: of the bootstrap.
    """

    worst: Estimate
    chosen: tuple[tuple[str, str], tuple[str, str]]
    ranks: tuple[int, int]
    draws: np.ndarray


@dataclass(frozen=True)
class Order:
    """By one score. places: {defense: place}. p_values: {(defense, other): after Holm's correction}."""

    places: Mapping[str, Place]
    p_values: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Ranking:
    """worst: by the worst case over families and attacks. mean: by the mean over families of each one's worst case.

    families: {family: by its worst case}.
    """

    worst: Order
    mean: Order
    families: Mapping[str, Order]


def ranked(
    defenses: Mapping[str, Defense],
    loss: float,
    *,
    higher_utility: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Order the defenses, by name, where an attack may cost at most the share `loss` of utility.

    Raises StatisticsError for records or seeds that differ, for no defense, and where there is no utility to lose.
    """
    if not defenses:
        raise StatisticsError("there are no defenses, so that none of them can be the first.")
    measured = _aligned(defenses)
    families = list(next(iter(measured.values())).shares)
    rng = np.random.default_rng(seed)
    first = next(iter(measured.values()))
    like = {family: next(iter(first.shares[family].values())) for family in families}
    like_utility = first.utility[first.before]
    seeds = len(like_utility.seeds)
    rules = _Rules(loss, 1.0 if higher_utility else -1.0)

    parts = {family: _parts(sample) for family, sample in like.items()}
    parts_of_utility = _parts(like_utility)
    scores = {name: _Scores(defense, rules, parts, parts_of_utility) for name, defense in measured.items()}
    found = {name: of.found() for name, of in scores.items()}
    drawn: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in measured}
    width = sum(sample.values.size for sample in like.values()) * len(first.utility)
    for size in chunks(resamples, width):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).astype(float) / seeds
        counts = {family: [_counts(rng, part, size) for part in parts[family]] for family in families}
        same = next((family for family in families if like[family].ids == like_utility.ids), None)
        of_utility = counts[same] if same else [_counts(rng, part, size) for part in parts_of_utility]
        for name, of in scores.items():
            drawn[name].append(of.values(counts, of_utility, of_seeds))
    keys = ["", *families]
    draws = {
        name: {key: np.concatenate([part[key] for part in of_name]) for key in keys} for name, of_name in drawn.items()
    }
    orders = {
        key: _order({name: found[name][key] for name in measured}, {name: draws[name][key] for name in measured})
        for key in keys
    }
    means = {name: _mean([found[name][family] for family in families]) for name in measured}
    mean_draws = {name: np.mean([draws[name][family] for family in families], axis=0) for name in measured}
    return Ranking(orders[""], _order(means, mean_draws), {family: orders[family] for family in families})


def holm(p_values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The p-values after Holm's correction for their number: (m - k) · p of the k-th smallest from 0, monotone."""
    corrected, largest = {}, 0.0
    for rank, (pair, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        corrected[pair] = largest
    return corrected


def difference_at(one: Place, other: Place, confidence: float) -> tuple[float, float]:
    """The interval of one score less the other at a confidence; see the head of this module."""
    (low, high), (other_low, other_high) = _interval(one.worst, confidence), _interval(other.worst, confidence)
    value = float(one.worst.value) - float(other.worst.value)
    shared = _correlation(one.draws, other.draws)
    below = _joined(one.worst.value - low, other_high - other.worst.value, shared)
    above = _joined(high - one.worst.value, other.worst.value - other_low, shared)
    return value - below, value + above


# --- helpers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One half of the records. places: among all; clusters: the number of each one's cluster, from 0."""

    places: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class _Found:
    """A score: its value, the interval that ignores the choosing, and what was chosen."""

    value: float
    own: tuple[float, float]
    chosen: tuple[tuple[str, str], tuple[str, str]]
    n: int


@dataclass(frozen=True)
class _Rules:
    loss: float
    utility: float

    def eligible(self, left: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Which attacks keep enough utility [attacks, draws], from means [attacks, draws] and [draws]."""
        return self.utility * (left - (1 - self.utility * self.loss) * before) >= -_ROUNDING


class _Scores:
    """The worst cases of one defense, as they are and in resamples; "" stands for that over all families."""

    def __init__(
        self,
        defense: Defense,
        rules: _Rules,
        parts: Mapping[str, tuple[_Part, _Part]],
        parts_of_utility: tuple[_Part, _Part],
    ) -> None:
        self._rules, self._parts = rules, parts
        self._families, self._attacks = list(defense.shares), list(defense.utility)
        self._before = self._attacks.index(defense.before)
        self._shares = {
            family: [_Values.of(list(of.values()), part) for part in parts[family]]
            for family, of in defense.shares.items()
        }
        self._utility = [_Values.of(list(defense.utility.values()), part) for part in parts_of_utility]
        self._samples = defense.shares

    def found(self) -> dict[str, _Found]:
        """The scores as they are."""
        seeds = next(iter(next(iter(self._samples.values())).values())).seeds
        equal = np.full((1, len(seeds)), 1 / len(seeds))
        eligible, shares = self._halves(None, None, equal)
        found = {}
        for key in ("", *self._families):
            picks = [self._pick(half, key, eligible, shares) for half in (0, 1)]
            chosen = tuple((self._families[f[0]], self._attacks[a[0]]) for f, a in picks)
            read = [self._read(chosen[1 - half], half) for half in (0, 1)]
            weights = [0.5, 0.5] if not key else [one.n / sum(each.n for each in read) for one in read]
            value = float(np.dot(weights, [one.value for one in read]))
            found[key] = _Found(value, _together(read, weights, value), chosen, sum(one.n for one in read))
        return found

    def values(
        self, counts: Mapping[str, list[np.ndarray]], of_utility: list[np.ndarray], seeds: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The scores in resamples [draws], from how often each record is drawn and the weights of seeds."""
        eligible, shares = self._halves(counts, of_utility, seeds)
        draws = np.arange(len(seeds))
        values = {}
        for key in ("", *self._families):
            total = weight = 0.0
            for half in (0, 1):
                family, attack = self._pick(1 - half, key, eligible, shares)
                read = shares[half][0][family, attack, draws]
                amount = shares[half][1][family, draws] if key else np.ones(len(seeds))
                total, weight = total + read * amount, weight + amount
            values[key] = total / weight
        return values

    def _halves(self, counts, of_utility, seeds):
        """Of each half: eligible [attacks, draws]; shares [families, attacks, draws] with records [families, draws]."""
        eligible, shares = [], []
        for half in (0, 1):
            left = self._utility[half].means(of_utility and of_utility[half], seeds)
            eligible.append(self._rules.eligible(left, left[self._before]))
            means = [self._shares[f][half].means(counts and counts[f][half], seeds) for f in self._families]
            amounts = [self._shares[f][half].amounts(counts and counts[f][half]) for f in self._families]
            shares.append((np.stack(means), np.stack([np.broadcast_to(a, means[0].shape[-1:]) for a in amounts])))
        return eligible, shares

    def _pick(self, half: int, key: str, eligible, shares) -> tuple[np.ndarray, np.ndarray]:
        """The family and the attack [draws] with the smallest share on a half; of equal ones the first."""
        means = shares[half][0]
        allowed = np.where(eligible[half] & np.isfinite(means), means, np.inf)
        if key:
            family = self._families.index(key)
            attack = allowed[family].argmin(axis=0)
            return np.full(attack.shape, family), attack
        flat = allowed.reshape(-1, allowed.shape[-1]).argmin(axis=0)
        return np.divmod(flat, allowed.shape[1])

    def _read(self, chosen: tuple[str, str], half: int) -> Estimate:
        """What the records of a half say of a family under an attack."""
        family, attack = chosen
        sample = self._samples[family][attack]
        places = self._parts[family][half].places
        facts = None if sample.facts is None else tuple(sample.facts[place] for place in places)
        ids = tuple(sample.ids[place] for place in places)
        return estimate(Sample(sample.seeds, ids, sample.values[:, places], facts=facts))


@dataclass(frozen=True)
class _Values:
    """Values of the records of a half [attacks, seeds, records], 0 where one does not count, and whether it does."""

    values: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], part: _Part) -> _Values:
        values = np.stack([sample.values[:, part.places] for sample in samples])
        counted = ~np.isnan(values)
        return cls(np.where(counted, values, 0.0), counted.astype(float))

    def means(self, weights: np.ndarray | None, seeds: np.ndarray) -> np.ndarray:
        """Means over records, then over seeds [attacks, draws]; weights [records, draws], seeds [draws, seeds]."""
        if weights is None:
            totals, counts = self.values.sum(axis=-1, keepdims=True), self.counted.sum(axis=-1, keepdims=True)
        else:
            totals, counts = self.values @ weights, self.counted @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            means = totals / counts
        return np.where(seeds.T > 0, means * seeds.T, 0.0).sum(axis=1)

    def amounts(self, weights: np.ndarray | None) -> np.ndarray:
        """How many records count, of those drawn, for any attack and seed [draws]."""
        any_counted = self.counted.any(axis=(0, 1)).astype(float)
        return any_counted.sum(keepdims=True) if weights is None else any_counted @ weights


def _parts(like: Sample) -> tuple[_Part, _Part]:
    first = halves(like.facts or like.ids)
    parts = []
    for places in (np.flatnonzero(first), np.flatnonzero(~first)):
        facts = None if like.facts is None else [like.facts[place] for place in places]
        parts.append(_Part(places, numbered(facts, len(places))))
    return parts[0], parts[1]


def _counts(rng: np.random.Generator, part: _Part, size: int) -> np.ndarray:
    """How often each record of a half is drawn [records, draws], all of a cluster together."""
    n = int(part.clusters.max(initial=-1)) + 1
    return rng.multinomial(n, np.full(n, 1 / n), size=size).T.astype(float)[part.clusters]


def _order(found: Mapping[str, _Found], draws: Mapping[str, np.ndarray]) -> Order:
    places = {
        name: Place(_stated(one, draws[name]), one.chosen, (1, len(found)), draws[name]) for name, one in found.items()
    }
    p_values = holm({pair: _p_value(places[pair[0]], places[pair[1]]) for pair in combinations(places, 2)})
    better = dict.fromkeys(places, 0)
    worse = dict.fromkeys(places, 0)
    for (one, other), p_value in p_values.items():
        if p_value < SIGNIFICANT:
            above, below = (one, other) if places[one].worst.value > places[other].worst.value else (other, one)
            better[below] += 1
            worse[above] += 1
    ranks = {name: (1 + better[name], len(places) - worse[name]) for name in places}
    return Order({name: replace(place, ranks=ranks[name]) for name, place in places.items()}, p_values)


def _p_value(one: Place, other: Place) -> float:
    side = "above" if one.worst.value >= other.worst.value else "below"
    found = p_beyond(lambda c: difference_at(one, other, c), 0.0, side, floor=2 / (len(one.draws) + 1))
    return 1.0 if found is None else found


def _stated(found: _Found, draws: np.ndarray) -> Estimate:
    """A score with the interval of its draws, nowhere narrower than the one that ignores the choosing."""
    level = 0.5 - CONFIDENCE / 2
    low, high = np.quantile(draws, [level, 1 - level])
    stated = (float(min(low, found.own[0], found.value)), float(max(high, found.own[1], found.value)))
    spread = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
    result = Estimate(found.value, spread, None, found.n, {}, None, stated=stated)
    return replace(result, interval=result.at(CONFIDENCE))


def _together(read: Sequence[Estimate], weights: Sequence[float], value: float) -> tuple[float, float]:
    """The interval of a weighted mean of independent estimates, from theirs."""
    down, up = 0.0, 0.0
    for weight, one in zip(weights, read, strict=True):
        low, high = _interval(one, CONFIDENCE)
        down, up = down + (weight * (one.value - low)) ** 2, up + (weight * (high - one.value)) ** 2
    return value - down**0.5, value + up**0.5


def _mean(found: Sequence[_Found]) -> _Found:
    """The mean of independent scores; what was chosen is that of the smallest."""
    value = sum(one.value for one in found) / len(found)
    down = sum((one.value - one.own[0]) ** 2 for one in found) ** 0.5 / len(found)
    up = sum((one.own[1] - one.value) ** 2 for one in found) ** 0.5 / len(found)
    least = min(found, key=lambda one: one.value)
    return _Found(value, (value - down, value + up), least.chosen, sum(one.n for one in found))


def _interval(of: Estimate, confidence: float) -> tuple[float, float]:
    return of.at(confidence) or (float(of.value), float(of.value))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if one.std() < _FLAT or other.std() < _FLAT:
        return 0.0
    return float(np.clip(np.corrcoef(one, other)[0, 1], -1.0, 1.0))


def _joined(up: float, down: float, shared: float) -> float:
    return float(np.sqrt(max(0.0, up * up - 2 * shared * up * down + down * down)))


def _aligned(defenses: Mapping[str, Defense]) -> dict[str, Defense]:
    """All at the same seeds, one seed (the base model's) for each. Raises StatisticsError where they differ."""
    named = {
        (name, what): sample
        for name, defense in defenses.items()
        for what, samples in (*defense.shares.items(), ("utility", defense.utility))
        for sample in samples.values()
    }
    seeds = max((sample.seeds for sample in named.values()), key=len)
    like: dict[str, tuple[str, Sample]] = {}
    for name, defense in defenses.items():
        for what, samples in (*defense.shares.items(), ("utility", defense.utility)):
            for attack, sample in samples.items():
                of, first = like.setdefault(what, (f"{name} ({attack})", sample))
                pair = f"{what}: {of} and {name} ({attack})"
                same_records(first.ids, sample.ids, pair)
                same_facts(first.facts, sample.facts, pair)
                if at_seeds(sample, seeds).seeds != seeds:
                    raise StatisticsError(
                        f"{pair} were measured at the seeds {list(first.seeds)} and {list(sample.seeds)}, others at "
                        f"{list(seeds)}. Measure all of them at the same seeds; only one seed can stand for several."
                    )
        before = estimate(defense.utility[defense.before]).value
        if not before or before <= 0:
            raise StatisticsError(f"{name}: there is no utility before the attacks that could be lost.")
    return {
        name: Defense(
            {family: _at(samples, seeds) for family, samples in defense.shares.items()},
            _at(defense.utility, seeds),
            defense.before,
        )
        for name, defense in defenses.items()
    }


def _at(samples: Mapping[str, Sample], seeds: tuple) -> dict[str, Sample]:
    return {attack: at_seeds(sample, seeds) for attack, sample in samples.items()}
