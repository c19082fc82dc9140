"""The worst case: of many attacks on one model, the one that does most harm among those that cost little utility.

An attack is eligible that loses at most a share ε of the utility before it: u ≥ (1 - ε) · u₀, or u ≤ (1 + ε) · u₀ for a
utility that is better lower. A maximum over attacks that is read off the records that chose it is too large, the more
so the more attacks were tried. So the records of both metrics are split into halves: an attack is chosen, by harm and
utility, on one half and its harm is read on the other, then the other way round, and both readings make one value
(cross-fitting; two fixed halves). Each record is thus read under an attack that it had no part in choosing. Records
that ask for one fact in several phrasings are in the same half: an attack that brings the fact back brings back all of
them, so that in two halves they would read off themselves what they have chosen.

Interval: the percentiles of a bootstrap over records (over facts, where there are), within each half, and over seeds,
in which the attacks are chosen anew each time (Efron and Tibshirani 1993, ch. 13); where it is narrower than the
interval that ignores the choosing, such as where all records agree, that one counts. Seeds, though few, are drawn here,
because they take part in choosing.

Qi et al. 2024 (arXiv 2412.07097) and TamperBench (arXiv 2602.06911) say why an evaluation has to tune the adversary;
the halves are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bulwark.evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    Sample,
    StatisticsError,
    chunks,
    estimate,
    numbered,
    same_facts,
    same_records,
)

RESAMPLES = 2_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Attack:
    """What is known of an attack: its harm, and the utility that it leaves, per seed and record."""

    harm: Sample
    utility: Sample


@dataclass(frozen=True)
class WorstCase:
    """See `worst_case`.

    estimate: of the harm; its value is None where no attack is eligible on one of the halves. sample: the harm of each
    record under the attack that the other half has chosen, for comparisons; None likewise. chosen: by the first and
    the second half of the records, None where none is eligible. eligible: how many are, by half; none where there is no
    utility to lose. before: the utility before the attacks. kept: the share of it that the chosen attacks leave, read
    as harm is. undefined: the share of resamples without an eligible
    attack, which the interval leaves out.
    """

    estimate: Estimate
    sample: Sample | None
    chosen: tuple[str | None, str | None]
    eligible: tuple[int, int]
    before: float
    kept: float | None
    undefined: float


def worst_case(
    attacks: Mapping[str, Attack],
    before: Sample,
    loss: float,
    *,
    highest: bool = True,
    higher_utility: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> WorstCase:
    """The worst of `attacks`, by name, among those that lose at most the share `loss` of the utility `before` them.

    highest: whether most harm is the highest value. higher_utility: whether utility is better higher. Of attacks that
    do equal harm, the first is chosen. Raises StatisticsError for no attacks, and for records or seeds that differ.
    """
    if not attacks:
        raise StatisticsError("there are no attacks, so that none of them can be the worst.")
    first = next(iter(attacks.values()))
    for name, attack in attacks.items():
        same_records(first.harm.ids, attack.harm.ids, f"the attacks ({name} and {next(iter(attacks))})")
        same_records(before.ids, attack.utility.ids, f"the utility before and after {name}")
        same_facts(first.harm.facts, attack.harm.facts, f"the attacks ({name} and {next(iter(attacks))})")
        same_facts(before.facts, attack.utility.facts, f"the utility before and after {name}")
        if not attack.harm.seeds == attack.utility.seeds == first.harm.seeds:
            raise StatisticsError(
                f"{name} was measured at the seeds {list(attack.harm.seeds)} and {list(attack.utility.seeds)}, others "
                f"at {list(first.harm.seeds)}. Measure harm and utility of all attacks at the same seeds."
            )
    if before.seeds != first.harm.seeds and len(before.seeds) > 1:
        raise StatisticsError(
            f"the recipe before the attacks has the seeds {list(before.seeds)}, the attacks {list(first.harm.seeds)}. "
            "Measure both at the same seeds; only a recipe with a single seed can stand against several."
        )
    whole = float(estimate(before).value or 0.0)
    names = list(attacks)
    harm = _Half.of(np.stack([attack.harm.values for attack in attacks.values()]), first.harm)
    left = _Half.of(np.stack([attack.utility.values for attack in attacks.values()]), before)
    own = _Half.of(before.values[None], before)
    rules = _Rules(loss, 1.0 if highest else -1.0, 1.0 if higher_utility else -1.0)

    ones = np.ones((1, len(first.harm.seeds)))
    chosen = [rules.choose(*(part.means(None, ones) for part in half)) for half in zip(harm, left, own, strict=True)]
    eligible = tuple(int(found.sum()) for found, _ in chosen)
    picked = [int(best[0]) if found.any() else None for found, best in chosen]
    named = tuple(None if pick is None else names[pick] for pick in picked)
    n = int((~np.isnan(first.harm.values)).any(axis=0).sum())
    if whole <= 0:
        named, eligible = (None, None), (0, 0)
    if None in named:
        return WorstCase(Estimate(None, None, None, n, {}, None), None, named, eligible, whole, None, 1.0)

    crossed = _crossed(first.harm, harm, picked)
    fitted = estimate(crossed)
    kept = estimate(_crossed(first.utility, left, picked)).value
    same = first.harm.ids == before.ids
    draws = _bootstrap(rules, harm, left, own, same, len(first.harm.seeds), resamples, np.random.default_rng(seed))
    known = draws[np.isfinite(draws)]
    found = _with_bootstrap(fitted, known)
    return WorstCase(
        replace(found, interval=found.at(confidence)),
        crossed,
        named,
        eligible,
        whole,
        None if kept is None else kept / whole,
        1 - known.size / draws.size,
    )


def halves(ids: Sequence[str]) -> np.ndarray:
    """Whether each record belongs to the first half [records]: in the order of the digests of their ids.

    ids: of the records, or the facts that they ask for, which are then divided. So it does not depend on the order of
    the records, and two metrics of the same records have the same halves.
    """
    order = sorted(set(ids), key=lambda name: hashlib.sha256(name.encode()).digest())
    first = set(order[: (len(order) + 1) // 2])
    return np.array([name in first for name in ids], dtype=bool)


# --- helpers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Half:
    """The records of one half. values, counted [attacks, seeds, records]: 0 where a record does not count.

    places, clusters [records]: of each among all records, and the number of its cluster within the half.
    """

    values: np.ndarray
    counted: np.ndarray
    places: np.ndarray
    clusters: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, like: Sample) -> tuple[_Half, _Half]:
        """Both halves of values of the same records as a sample's."""
        first = halves(like.facts or like.ids)
        parts = []
        for places in (np.flatnonzero(first), np.flatnonzero(~first)):
            part = values[..., places]
            counted = ~np.isnan(part)
            facts = None if like.facts is None else [like.facts[place] for place in places]
            clusters = numbered(facts, len(places))
            parts.append(cls(np.where(counted, part, 0.0), counted.astype(float), places, clusters))
        return parts[0], parts[1]

    def sums(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Sums of values and of records that count [attacks, seeds, draws]; weights [records, draws], None for 1."""
        if weights is None:
            return self.values.sum(axis=-1, keepdims=True), self.counted.sum(axis=-1, keepdims=True)
        return self.values @ weights, self.counted @ weights

    def means(self, weights: np.ndarray | None, seeds: np.ndarray) -> np.ndarray:
        """Means over records, then over seeds, drawn `seeds` [draws, seeds] times; [attacks, draws]."""
        return _over_seeds(*self.sums(weights), seeds)


def _over_seeds(totals: np.ndarray, counts: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The mean over seeds of total / count [..., seeds, draws]; seeds [draws, seeds] times each."""
    if totals.shape[-2] == 1 < seeds.shape[1]:  # a recipe with one seed stands against several
        seeds = np.ones((len(seeds), 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        means = totals / counts
    asked = seeds.T > 0
    return np.where(asked, means * seeds.T, 0.0).sum(axis=-2) / seeds.sum(axis=1)


@dataclass(frozen=True)
class _Rules:
    """How an attack is chosen. harm, utility: 1 where higher is more harm, better; else -1."""

    loss: float
    harm: float
    utility: float

    def choose(self, harm: np.ndarray, left: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which attacks are eligible [attacks, draws], and the worst of them [draws], from means [attacks, draws]."""
        bound = (1 - self.utility * self.loss) * before
        eligible = (self.utility * (left - bound) >= -_ROUNDING) & np.isfinite(harm)
        return eligible, np.where(eligible, self.harm * harm, -np.inf).argmax(axis=0)


def _crossed(like: Sample, parts: tuple[_Half, _Half], picked: Sequence[int]) -> Sample:
    """Each half under the attack that the other has chosen."""
    values = np.full(like.values.shape, np.nan)
    for part, attack in zip(parts, reversed(picked), strict=True):
        values[:, part.places] = np.where(part.counted[attack] > 0, part.values[attack], np.nan)
    return Sample(like.seeds, like.ids, values, facts=like.facts)


def _bootstrap(
    rules: _Rules,
    harm: tuple[_Half, _Half],
    left: tuple[_Half, _Half],
    own: tuple[_Half, _Half],
    same: bool,
    seeds: int,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The harm of the worst case in each resample [resamples]; NaN where no attack is eligible on one half.

    same: whether harm and utility are of the same records, which are then drawn together.
    """
    drawn = []
    for size in chunks(resamples, harm[0].values.size + left[0].values.size):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).astype(float)
        of_harm = [_counts(rng, part, size) for part in harm]
        of_utility = of_harm if same else [_counts(rng, part, size) for part in left]
        totals = counts = 0.0
        undefined = np.zeros(size, dtype=bool)
        for half in (0, 1):
            eligible, best = rules.choose(
                harm[half].means(of_harm[half], of_seeds),
                left[half].means(of_utility[half], of_seeds),
                own[half].means(of_utility[half], of_seeds),
            )
            undefined |= ~eligible.any(axis=0)
            read = [part[best, :, np.arange(size)] for part in harm[1 - half].sums(of_harm[1 - half])]  # [draws, seeds]
            totals, counts = totals + read[0], counts + read[1]
        worst = _over_seeds(np.asarray(totals).T, np.asarray(counts).T, of_seeds)
        drawn.append(np.where(undefined, np.nan, worst))
    return np.concatenate(drawn)


def _counts(rng: np.random.Generator, part: _Half, size: int) -> np.ndarray:
    """How often each record of a half is drawn [records, draws], all of a cluster together."""
    n = int(part.clusters.max(initial=-1)) + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=size).T.astype(float) if n else np.zeros((0, size))
    return drawn[part.clusters]


def _with_bootstrap(fitted: Estimate, draws: np.ndarray) -> Estimate:
    """The estimate with the interval of the draws, nowhere narrower than its own."""
    level = 0.5 - CONFIDENCE / 2
    low, high = np.quantile(draws, [level, 1 - level]) if draws.size else (fitted.value, fitted.value)
    if fitted.interval is not None:
        low, high = min(low, fitted.interval[0]), max(high, fitted.interval[1])
    spread = float(draws.std(ddof=1)) if draws.size > 1 else 0.0
    stated = (float(min(low, fitted.value)), float(max(high, fitted.value)))
    return replace(fitted, stderr=max(spread, fitted.stderr or 0.0), stated=stated)
