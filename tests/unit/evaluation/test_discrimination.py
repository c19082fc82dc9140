"""Discrimination: the textbook numbers, ties and all, and intervals that hold what they promise."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bulwark.evaluation.roc import discrimination, resampled, roc_points


def drawn(seed: int, positives: int = 30, negatives: int = 50, shift: float = 1.0, digits: int = 1):
    """Two normal groups, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(shift, 1, positives), rng.normal(0, 1, negatives)]).round(digits)
    return scores, np.arange(positives + negatives) < positives


def test_a_small_case_by_hand():
    # Positives 3 and 1, negatives 2, 1 and 0: of six pairs 3>2, 3>1, 3>0, 1>0 are right and 1=1 is half.
    found = discrimination([3, 1, 2, 1, 0], [True, True, False, False, False])
    assert found.auroc.value == pytest.approx(4.5 / 6)
    assert found.auprc.value == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)  # both groups' 1 come at the same threshold
    assert found.tpr_at_1_fpr.value == 0.5
    assert (found.positives, found.negatives) == (2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_resampling_everything_once_gives_sklearns_numbers(seed):
    scores, positive = drawn(seed)
    auroc, precision, few = resampled(scores, positive, np.ones((1, len(scores)), dtype=int))[:, 0]
    assert auroc == pytest.approx(roc_auc_score(positive, scores))
    assert precision == pytest.approx(average_precision_score(positive, scores))
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert few == pytest.approx(true[false <= 0.01].max())


def test_resamples_are_those_of_repeated_records():
    scores, positive = drawn(1)
    counts = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=4)
    found = resampled(scores, positive, counts)
    for number, row in enumerate(counts):
        repeated = np.repeat(scores, row), np.repeat(positive, row)
        assert found[0, number] == pytest.approx(roc_auc_score(repeated[1], repeated[0]))
        assert found[1, number] == pytest.approx(average_precision_score(repeated[1], repeated[0]))


def test_the_error_is_that_of_fresh_draws():
    errors = [discrimination(*drawn(seed), resamples=300).auroc.stderr for seed in range(5)]
    fresh = np.std([roc_auc_score(*drawn(seed)[::-1]) for seed in range(400)])
    assert np.mean(errors) == pytest.approx(fresh, rel=0.2)


def test_intervals_hold_the_true_area_about_as_often_as_they_say():
    true = 0.7602  # Φ(1/√2)
    intervals = [discrimination(*drawn(seed, digits=6), resamples=200).auroc.interval for seed in range(100)]
    assert 86 <= sum(low <= true <= high for low, high in intervals) <= 100


def test_a_perfect_detector_is_not_certain():
    found = discrimination([1, 2, 3, 4, 5, 6, 7, 8], [False] * 4 + [True] * 4)
    assert found.auroc.value == 1
    assert found.auroc.interval[0] == pytest.approx(0.5101, abs=1e-3)  # Wilson, 4 of 4
    assert found.auroc.interval[1] == pytest.approx(1)


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_without_both_groups_nothing_is_defined(positive):
    found = discrimination([1.0, 2.0][: len(positive)], positive)
    assert found.auroc.value is found.auprc.stderr is found.tpr_at_1_fpr.interval is None


def test_roc_points_span_the_square():
    scores, positive = drawn(2, positives=400, negatives=400, digits=9)
    points = roc_points(scores, positive, most=50)
    assert len(points) <= 50
    assert (points[0], points[-1]) == ([0, 0], [1, 1])
    area = np.trapezoid([true for _, true in points], [false for false, _ in points])
    assert area == pytest.approx(roc_auc_score(positive, scores), abs=0.01)
