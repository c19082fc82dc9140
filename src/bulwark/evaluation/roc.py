"""How well a number tells two groups apart: ROC, areas, the rate at few false alarms, with errors over records.

The larger the number, the more it should speak for the positive group. Errors come from the bootstrap over records
(both groups together, so that their shares vary as well); a resample without one of the groups does not count.
Area under the ROC: the share of pairs (positive, negative) in the right order, ties half. Average precision: the step
sum Σ (R_k - R_{k-1}) P_k, without interpolation. Ties share one threshold everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bulwark.evaluation.statistics import CONFIDENCE, chunks, wilson

RESAMPLES = 2000
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Measured:
    """A number with its bootstrap error and interval; None where nothing is defined."""

    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Discrimination:
    """What `scores` are worth: areas, true positives at a share `FALSE_ALARMS` of false ones, and ROC points."""

    auroc: Measured
    auprc: Measured
    tpr_at_1_fpr: Measured
    positives: int
    negatives: int


def discrimination(scores: Sequence[float], positive: Sequence[bool], *, resamples: int = RESAMPLES) -> Discrimination:
    """Measure `scores` [records] against the labels `positive` [records]. Without both groups every number is None."""
    values, labels = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    if not n_positive or not n_negative:
        nothing = Measured(None, None, None)
        return Discrimination(nothing, nothing, nothing, n_positive, n_negative)
    estimates = (
        float(roc_auc_score(labels, values)),
        float(average_precision_score(labels, values)),
        float(resampled(values, labels, np.ones((1, len(values)), dtype=int))[2, 0]),
    )
    rng = np.random.default_rng(0)
    drawn = [
        resampled(values, labels, rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=count))
        for count in chunks(resamples, len(values))
    ]
    draws = np.concatenate(drawn, axis=1)
    draws = draws[:, np.isfinite(draws).all(axis=0)]
    # Where all resamples agree (a perfect detector), the interval gets the room of a rate among the smaller group.
    room = min(n_positive, n_negative)
    auroc, auprc, tpr = (_measured(estimate, draw, room) for estimate, draw in zip(estimates, draws, strict=True))
    return Discrimination(auroc, auprc, tpr, n_positive, n_negative)


def roc_points(scores: Sequence[float], positive: Sequence[bool], most: int = 200) -> list[list[float]]:
    """The corners of the ROC curve, [[false positive rate, true positive rate], …], at most about `most` of them."""
    false, true, _ = roc_curve(np.asarray(positive, dtype=bool), np.asarray(scores, dtype=float))
    kept = np.unique(np.linspace(0, len(false) - 1, min(most, len(false))).round().astype(int))
    return [[float(false[index]), float(true[index])] for index in kept]


def resampled(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(AUROC, average precision, TPR at few false alarms) [3, resamples] of resamples `counts` [resamples, records].

    NaN where a resample lacks a group. Counts of 1 give the values of the records themselves.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last record of each threshold
    sorted_counts, labels = counts[:, order], positive[order]
    true = (sorted_counts * labels).cumsum(axis=1)[:, ends].astype(float)  # [resamples, thresholds]
    false = (sorted_counts * ~labels).cumsum(axis=1)[:, ends].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        true, false = true / true[:, -1:], false / false[:, -1:]
    steps = np.diff(true, axis=1, prepend=0)
    widths = np.diff(false, axis=1, prepend=0)
    auroc = (widths * (true - steps / 2)).sum(axis=1)
    few = np.where(false <= FALSE_ALARMS, true, 0.0).max(axis=1)
    few[~np.isfinite(auroc)] = np.nan
    return np.stack([auroc, (steps * precision).sum(axis=1), few])


def _measured(value: float, draws: np.ndarray, room: int) -> Measured:
    if draws.size < 2:
        return Measured(value, None, None)
    if np.ptp(draws) < 1e-12:
        low, high = wilson(value, room)
    else:
        low, high = np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Measured(value, float(draws.std(ddof=1)), (float(low), float(high)))
