"""Standard errors, intervals and paired tests: against scipy, against brute force, and at the edges."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bulwark.evaluation.statistics import (
    Sample,
    StatisticsError,
    compare,
    estimate,
    mean_and_error,
    mean_comparison,
    mean_interval,
    sample,
    threshold_p_value,
    wilson,
)

NAN = np.nan


def taken(*seeds, ids=None):
    values = np.array(seeds, dtype=float)
    return Sample(tuple(range(len(values))), ids or tuple(f"{i:04d}" for i in range(values.shape[1])), values)


def test_mean_and_error_is_scipys_sem():
    values = [0, 1, 1, 0, 1]
    assert mean_and_error(values) == (0.6, pytest.approx(stats.sem(values)))
    assert mean_and_error([1]) == (1.0, None)
    assert mean_and_error([]) == (None, None)


def test_wilson_is_scipys():
    for hits, n in ((0, 10), (3, 10), (10, 10), (480, 892)):
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_mean_that_is_no_rate_is_students():
    values = [0.1, 0.4, 0.2, 0.7]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.5]) is None
    assert mean_interval([]) is None


def test_one_seed_gives_the_plain_standard_error_of_the_counted_records():
    found = estimate(taken([1, NAN, 1, 0, NAN, 1]))
    assert found.value == 0.75
    assert found.stderr == pytest.approx(stats.sem([1, 1, 0, 1]))
    assert (found.n, found.seed_spread) == (4, None)
    assert found.interval == pytest.approx(mean_interval([1, 1, 0, 1]))


def test_the_same_records_at_two_seeds_are_no_more_evidence_than_at_one():
    once = [1, 0, 1, 1, 0, 1, 0, 1]
    assert estimate(taken(once, once)).stderr == pytest.approx(estimate(taken(once)).stderr)


def test_without_missing_values_the_cluster_error_is_that_of_the_records_means():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (3, 40))
    found = estimate(taken(*values))
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(stats.sem(values.mean(axis=0)))
    assert found.seed_spread == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert found.by_seed == pytest.approx(dict(enumerate(values.mean(axis=1))))


def test_the_cluster_error_of_a_conditional_rate_agrees_with_a_bootstrap():
    rng = np.random.default_rng(1)
    values = np.where(rng.random((2, 300)) < 0.7, rng.random((2, 300)) < rng.random(300), NAN)
    found = estimate(taken(*values))
    picks = rng.integers(0, 300, (2000, 300))
    means = np.nanmean(values[:, picks], axis=2).mean(axis=0)
    assert found.stderr == pytest.approx(means.std(), rel=0.08)


def test_a_seed_without_any_counted_record_has_no_estimate():
    found = estimate(taken([1, 0, 1], [NAN, NAN, NAN]))
    assert (found.value, found.stderr, found.interval) == (None, None, None)
    assert found.by_seed == {0: pytest.approx(2 / 3), 1: None}


def test_rates_at_the_edge_keep_an_interval_of_some_width():
    found = estimate(taken([1] * 20, [1] * 20))
    assert found.interval == pytest.approx(wilson(1.0, 20))


def test_rows_become_a_sample_and_differing_records_are_named():
    rows = {1: [{"id": "b", "x": None}, {"id": "a", "x": 1}], 0: [{"id": "a", "x": 0}, {"id": "b", "x": 1}]}
    found = sample(rows, "x")
    assert (found.seeds, found.ids) == ((0, 1), ("a", "b"))
    np.testing.assert_array_equal(found.values, [[0, 1], [1, NAN]])
    with pytest.raises(StatisticsError, match=r"different records.*c"):
        sample({0: rows[0], 1: [*rows[1], {"id": "c", "x": 1}]}, "x")


def test_the_bootstrap_interval_is_scipys_bca():
    rng = np.random.default_rng(2)
    a, b = rng.exponential(1.0, 60), rng.exponential(1.3, 60)
    ours = compare(taken(a), taken(b), resamples=20_000)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    assert ours.difference == pytest.approx((a - b).mean())
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_permutation_p_value_is_the_exact_one():
    a, b = np.array([1, 1, 1, 0, 1, 1.0, 1]), np.array([0, 0, 1, 0, 0, 1.0, 0])
    flips = np.array(list(itertools.product([1, -1], repeat=len(a)))) * (a - b)
    exact = np.mean(np.abs(flips.mean(axis=1)) >= (a - b).mean() - 1e-12)
    assert compare(taken(a), taken(b), resamples=50_000).p_value == pytest.approx(exact, abs=0.005)


def test_a_conditional_metric_is_recomputed_on_every_resample():
    # Pooled over records, the first recipe is better only because it counts more of the easy ones.
    first = [[1, 1, 1, 1, 0, NAN, NAN, 0]]
    second = [[NAN, NAN, 1, 1, 0, 0, 0, 1]]
    found = compare(taken(*first), taken(*second), resamples=4000)
    assert found.difference == pytest.approx(4 / 6 - 3 / 6)
    assert np.isfinite(found.draws).mean() > 0.99
    assert found.n == 4


def test_seeds_of_a_record_are_swapped_together():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 50)
    b = rng.integers(0, 2, 50)
    once = compare(taken(a), taken(b), resamples=20_000)
    thrice = compare(taken(a, a, a), taken(b, b, b), resamples=20_000)
    assert thrice.p_value == pytest.approx(once.p_value, abs=0.02)
    assert thrice.interval == pytest.approx(once.interval, abs=0.02)


def test_the_null_hypothesis_is_rejected_as_often_as_stated():
    rng = np.random.default_rng(4)
    p_values, covered = [], 0
    for trial in range(200):
        difficulty = rng.random(60)
        a, b = (rng.random((2, 60)) < difficulty for _ in range(2))
        found = compare(taken(*a), taken(*b), resamples=500, seed=trial)
        p_values.append(found.p_value)
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert np.mean(np.array(p_values) <= 0.05) < 0.10
    assert covered / 200 > 0.88


def test_one_seed_stands_against_several_and_other_seeds_do_not():
    base, trained = taken([0, 0, 1, 1]), taken([1, 0, 1, 1], [1, 1, 1, 0])
    assert compare(trained, base, resamples=100).by_seed == {0: 0.25, 1: 0.25}
    with pytest.raises(StatisticsError, match=r"different seeds \(\[0, 1\] and \[0, 2\]\)"):
        compare(trained, Sample((0, 2), base.ids, np.zeros((2, 4))), resamples=100)


def test_other_records_are_refused_by_name():
    with pytest.raises(StatisticsError, match=r"different records.*x1"):
        compare(taken([1, 0], ids=("x0", "x1")), taken([1, 0], ids=("x0", "x2")))


def test_agreement_on_few_records_is_no_proof_of_equality():
    found = compare(taken([1] * 10), taken([1] * 10), resamples=200)
    assert found.difference == 0
    assert found.p_value == 1.0
    assert found.interval == pytest.approx((-wilson(0, 10)[1], wilson(0, 10)[1]))
    complete = compare(taken([1] * 30), taken([0] * 30), resamples=2000)
    assert complete.interval == (pytest.approx(1 - wilson(0, 30)[1]), 1.0)
    assert complete.p_value < 0.001


def test_an_undefined_metric_gives_an_undefined_comparison():
    found = compare(taken([NAN, NAN]), taken([1, 0]))
    assert (found.difference, found.interval, found.p_value) == (None, None, None)


def test_the_same_seed_gives_the_same_numbers():
    rng = np.random.default_rng(5)
    a, b = taken(rng.random(30)), taken(rng.random(30))
    first, again, other = (compare(a, b, resamples=500, seed=seed) for seed in (7, 7, 8))
    assert first.interval == again.interval
    assert first.interval != other.interval


def test_models_are_averaged_with_equal_weights():
    rng = np.random.default_rng(6)
    pairs = [(taken(rng.random(n) < 0.8), taken(rng.random(n) < 0.5)) for n in (100, 400)]
    parts = [compare(a, b, resamples=4000, seed=index) for index, (a, b) in enumerate(pairs)]
    whole = mean_comparison(parts)
    assert whole.difference == pytest.approx(np.mean([part.difference for part in parts]))
    assert whole.n == 500
    assert whole.interval[0] < whole.difference < whole.interval[1]
    assert np.diff(whole.interval) < np.diff(parts[0].interval)
    assert mean_comparison(parts[:1]) is parts[0]


def test_many_records_cost_no_more_than_few():
    rng = np.random.default_rng(7)
    found = compare(taken(*(rng.random((3, 20_000)) < 0.8)), taken(*(rng.random((3, 20_000)) < 0.79)))
    assert found.interval[0] < found.difference < found.interval[1]
    assert len(found.draws) == 10_000


@pytest.mark.parametrize(
    ("side", "hits", "small"), [("at_least", 98, True), ("at_least", 90, False), ("at_most", 70, True)]
)
def test_the_threshold_test_agrees_with_wilsons_interval(side, hits, small):
    found = estimate(taken([1] * hits + [0] * (100 - hits)))
    assert (threshold_p_value(found, 0.9, side, rate=True) < 0.025) is small
