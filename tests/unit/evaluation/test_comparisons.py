"""Paired comparisons: against scipy, published values and brute force, and at the edges."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bulwark.evaluation.comparisons import compare, compare_over_models
from bulwark.evaluation.statistics import Sample, StatisticsError, wilson

NAN = np.nan


def taken(*seeds, ids=None):
    values = np.array(seeds, dtype=float)
    return Sample(tuple(range(len(values))), ids or tuple(f"{i:04d}" for i in range(values.shape[1])), values)


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
    assert found.n == 4


def test_seeds_of_a_record_are_swapped_together():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 50)
    b = rng.integers(0, 2, 50)
    once = compare(taken(a), taken(b), resamples=20_000)
    thrice = compare(taken(a, a, a), taken(b, b, b), resamples=20_000)
    assert thrice.p_value == pytest.approx(once.p_value, abs=0.02)
    assert thrice.interval == pytest.approx(once.interval, abs=1e-9)


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
    room = wilson(0, 10)[1]
    assert found.interval == pytest.approx((-room, room))
    complete = compare(taken([1] * 30), taken([0] * 30), resamples=2000)
    assert complete.interval == (pytest.approx(1 - np.sqrt(2) * wilson(0, 30)[1]), 1.0)
    assert complete.p_value == pytest.approx(1 / 2001)  # never 0: the data themselves are one arrangement


def test_an_undefined_metric_gives_an_undefined_comparison():
    found = compare(taken([NAN, NAN]), taken([1, 0]))
    assert (found.difference, found.interval, found.p_value) == (None, None, None)


def test_the_same_seed_gives_the_same_numbers():
    rng = np.random.default_rng(5)
    a, b = taken(rng.random(30)), taken(rng.random(30))  # no rates: their interval is drawn
    first, again, other = (compare(a, b, resamples=500, seed=seed) for seed in (7, 7, 8))
    assert first.interval == again.interval
    assert first.interval != other.interval


def test_models_are_averaged_with_equal_weights():
    rng = np.random.default_rng(6)
    pairs = [
        (taken(rng.random(n) < 0.8, ids=ids), taken(rng.random(n) < 0.5, ids=ids))
        for n, ids in ((n, tuple(f"{n}-{i}" for i in range(n))) for n in (100, 400))
    ]
    parts = [compare(a, b, resamples=400) for a, b in pairs]
    whole = compare_over_models(pairs, resamples=4000)
    assert whole.difference == pytest.approx(np.mean([part.difference for part in parts]))
    assert whole.n == 500
    assert whole.interval[0] < whole.difference < whole.interval[1]
    assert np.diff(whole.interval) < np.diff(parts[0].interval)
    alone = compare_over_models(pairs[:1], resamples=400)
    assert (alone.interval, alone.p_value) == (parts[0].interval, parts[0].p_value)


def test_a_record_takes_all_models_with_it():
    rng = np.random.default_rng(9)
    a, b = taken(rng.random(80) < 0.7), taken(rng.random(80) < 0.5)
    once, often = compare(a, b, resamples=5000), compare_over_models([(a, b)] * 5, resamples=5000)
    assert often.interval == pytest.approx(once.interval, abs=1e-9)
    assert often.p_value == pytest.approx(once.p_value, abs=0.02)
    assert often.n == 80
    means = [taken(rng.random(80)) for _ in range(2)]
    once, often = compare(*means, resamples=5000), compare_over_models([tuple(means)] * 5, resamples=5000)
    assert often.interval == pytest.approx(once.interval, abs=0.02)


def test_the_interval_of_two_independent_rates_is_newcombes():
    # Newcombe (1998), Statistics in Medicine 17, 873, table II, method 10, rows (a) 56/70 - 48/80 and (g) 10/10 - 0/10:
    # [0.0524, 0.3339] and [0.6075, 1.0000]. Apart, because ours are paired: with no correlation the two are the same.
    for (hits, n), (others, m), expected in (
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ):
        (low, high), (other_low, other_high) = wilson(hits / n, n), wilson(others / m, m)
        difference = hits / n - others / m
        ours = (
            difference - np.hypot(hits / n - low, other_high - others / m),
            difference + np.hypot(high - hits / n, others / m - other_low),
        )
        assert ours == pytest.approx(expected, abs=5e-5)
    first = taken([1] * 10)
    second = taken([0] * 10)
    assert compare(first, second, resamples=100).interval == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_correlated_rates_have_the_narrower_interval():
    hard = np.array([1] * 60 + [0] * 40)
    same, shuffled = hard.copy(), np.random.default_rng(1).permutation(hard)
    same[:5] = 0
    narrow, wide = (compare(taken(hard), taken(other), resamples=100) for other in (same, shuffled))
    assert np.diff(narrow.interval) < 0.6 * np.diff(wide.interval)


def test_p_values_of_margins_agree_with_the_interval():
    rng = np.random.default_rng(10)
    for a, b in (
        (taken(rng.random(200) < 0.9), taken(rng.random(200) < 0.7)),
        (taken(rng.normal(1.0, 1.0, 200)), taken(rng.normal(0.7, 1.0, 200))),
    ):
        found = compare(a, b, resamples=4000)
        low, high = found.interval
        assert found.p_above(low) == pytest.approx(0.05, abs=1e-3)
        assert found.p_below(high) == pytest.approx(0.05, abs=1e-3)
        assert found.p_above(low - 0.05) < 0.05 < found.p_above(low + 0.05)
        assert found.p_below(high + 0.05) < 0.05 < found.p_below(high - 0.05)
        assert found.p_above(-50) == pytest.approx(1 / 4001)


def test_means_that_never_differ_are_no_proof_of_equality():
    found = compare(taken([0.25, 0.5] * 5), taken([0.25, 0.5] * 5), resamples=200)
    assert found.interval == pytest.approx((-0.25 * wilson(0, 10)[1], 0.25 * wilson(0, 10)[1]))


def test_many_records_cost_no_more_than_few():
    rng = np.random.default_rng(7)
    found = compare(taken(*(rng.random((3, 20_000)) < 0.8)), taken(*(rng.random((3, 20_000)) < 0.79)))
    assert found.interval[0] < found.difference < found.interval[1]


def test_an_interval_grows_with_its_confidence_also_where_the_values_are_skewed():
    """With one value far out the formula of BCa has a pole, beyond which its levels would turn round."""
    skewed = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 60.0]
    found = compare(taken(skewed), taken([0.15] * 8), resamples=2000)
    spans = [found.at(confidence) for confidence in (0.5, 0.9, 0.99, 0.9999, 1 - 1e-9, 1 - 1e-14)]
    for (low, high), (lower, higher) in itertools.pairwise(spans):
        assert lower <= low
        assert high <= higher


@pytest.mark.parametrize("kind", ["rate", "mean"])
def test_phrasings_of_a_fact_prove_no_more_than_one(kind):
    """Each fact four times, with the same answers: difference, interval and p-value are those of the facts."""
    rng = np.random.default_rng(6)
    values = rng.random((2, 40)) if kind == "mean" else (rng.random((2, 40)) < [[0.6], [0.4]]).astype(float)
    facts = tuple(np.repeat([f"f{n:02d}" for n in range(40)], 4))
    once = compare(taken(values[0]), taken(values[1]), resamples=20_000)
    samples = [taken(np.repeat(row, 4)) for row in values]
    again = compare(*(Sample(s.seeds, s.ids, s.values, facts=facts) for s in samples), resamples=20_000)
    loose = compare(*samples, resamples=20_000)
    assert again.difference == pytest.approx(once.difference)
    assert again.interval == pytest.approx(once.interval, abs=0.01)
    assert again.p_value == pytest.approx(once.p_value, abs=0.02)
    assert loose.interval[1] - loose.interval[0] < 0.7 * (again.interval[1] - again.interval[0])
    with pytest.raises(StatisticsError, match="the two recipes do not say alike"):
        compare(samples[0], Sample(samples[1].seeds, samples[1].ids, samples[1].values, facts=facts))
