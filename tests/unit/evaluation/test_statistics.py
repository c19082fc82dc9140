"""Standard errors and intervals: against scipy, against brute force, and at the edges."""

import numpy as np
import pytest
from scipy import stats

from bulwark.evaluation.statistics import (
    Sample,
    StatisticsError,
    estimate,
    mean_and_error,
    mean_interval,
    mean_of_independent,
    p_beyond,
    sample,
    together,
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


def test_the_ends_of_a_rate_are_its_bounds():
    """Not what rounding leaves of them, which a reader would take for a number."""
    for n in (3, 24, 300, 1000, 12.7):
        assert wilson(0.0, n)[0] == 0.0
        assert wilson(1.0, n)[1] == 1.0


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


@pytest.mark.parametrize(
    ("side", "hits", "small"), [("above", 98, True), ("above", 90, False), ("below", 70, True), ("below", 98, False)]
)
def test_the_p_value_of_a_bound_is_the_score_test_for_rates(side, hits, small):
    found = estimate(taken([1] * hits + [0] * (100 - hits)))
    p_value = p_beyond(found.at, 0.9, side)
    assert (p_value < 0.05) is small
    score = (hits / 100 - 0.9) / np.sqrt(0.9 * 0.1 / 100) * (1 if side == "above" else -1)
    assert p_value == pytest.approx(min(1.0, 2 * stats.norm.sf(score)), abs=1e-6)


def test_the_p_value_of_a_bound_is_students_for_means():
    values = np.random.default_rng(8).normal(0.3, 1.0, 30)
    found = estimate(taken(values))
    assert p_beyond(found.at, 0.0, "above") == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, abs=1e-6)
    assert p_beyond(found.at, 0.0, "below") == 1.0
    assert p_beyond(estimate(taken([NAN, NAN])).at, 0.0, "above") is None


def test_models_that_answer_the_same_records_are_no_more_evidence_than_one():
    once = [1, 0, 1, 1, 0, 1, 0, 1]
    alone = estimate(taken(once))
    joint = estimate(together([taken(once)] * 4))
    assert (joint.value, joint.n, joint.stderr) == (alone.value, alone.n, pytest.approx(alone.stderr))
    apart = [taken(once, ids=tuple(f"{model}{i}" for i in range(8))) for model in range(4)]
    assert estimate(together(apart)).stderr == pytest.approx(alone.stderr / 2, rel=0.1)


def test_models_weigh_the_same_whatever_their_seeds():
    found = together([taken([1, 1, 1, 1]), taken([0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1])])
    assert found.shares == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert estimate(found).value == pytest.approx((1 + 0.25) / 2)


# --- facts in several phrasings ---


def asked_again(*seeds, phrasings=3):
    """Each value once for each phrasing of a fact, the phrasings of a fact not beside each other."""
    values = np.tile(np.array(seeds, dtype=float), (1, phrasings))
    count = values.shape[1] // phrasings
    facts = tuple(f"fact {n % count}" for n in range(values.shape[1]))
    return Sample(tuple(range(len(values))), tuple(f"{n:04d}" for n in range(values.shape[1])), values, facts=facts)


def test_records_of_a_fact_are_one_cluster():
    """Answers that agree in all phrasings tell as much as one phrasing does: error and interval are the same."""
    rng = np.random.default_rng(4)
    rate, mean = (rng.random((2, 20)) < 0.4).astype(float), rng.random((2, 20))
    for values in (rate, mean):
        once, again = estimate(taken(*values)), estimate(asked_again(*values))
        assert (again.value, again.n, again.clusters) == (pytest.approx(once.value), 60, 20)
        assert again.stderr == pytest.approx(once.stderr)
        assert again.interval == pytest.approx(once.interval)
    assert estimate(asked_again([1.0] * 20)).interval == pytest.approx(wilson(1.0, 20))


def test_facts_that_happen_to_be_alike_tell_no_more_than_the_records():
    """One of both phrasings right of 49 facts, and both of one: nearly no error over facts, but 100 answers at most."""
    halves = np.array([[1.0, 0.0]] * 49 + [[1.0, 1.0]])
    facts = tuple(np.repeat([f"f{n:02d}" for n in range(50)], 2))
    found = estimate(Sample((0,), tuple(f"{n:03d}" for n in range(100)), halves.reshape(1, -1), facts=facts))
    assert found.stderr < 0.02
    assert found.interval == pytest.approx(wilson(0.51, 100))


def test_the_error_over_facts_is_that_of_their_totals():
    """Facts with one to four phrasings, some of which do not count: the linearised error, by hand."""
    rng = np.random.default_rng(5)
    facts = tuple(np.repeat([f"f{n}" for n in range(15)], rng.integers(1, 5, 15)))
    values = rng.random((1, len(facts)))
    values[0, rng.random(len(facts)) < 0.2] = NAN
    found = estimate(Sample((0,), tuple(f"{n:03d}" for n in range(len(facts))), values, facts=facts))
    counted = ~np.isnan(values[0])
    centre = values[0, counted].mean()
    moves = {}
    for fact, value in zip(facts, values[0], strict=True):
        if value == value:
            moves[fact] = moves.get(fact, 0.0) + (value - centre) / counted.sum()
    assert found.clusters == len(moves)
    expected = np.sqrt(len(moves) / (len(moves) - 1) * sum(move**2 for move in moves.values()))
    assert (found.value, found.stderr) == (pytest.approx(centre), pytest.approx(expected))


def test_facts_are_taken_from_the_rows():
    rows = [{"id": str(n), "fact": f"f{n // 2}", "right": n % 2} for n in range(4)]
    loose = {"id": "9", "right": 1}
    assert sample({0: [*rows, loose]}, "right").facts == ("f0", "f0", "f1", "f1", "9")
    assert sample({0: [loose]}, "right").facts is None
    other = [{**row, "fact": "f0"} for row in rows]
    with pytest.raises(StatisticsError, match="seeds 0 and 1 do not say alike which fact"):
        sample({0: rows, 1: other}, "right")
    joined = together([sample({0: rows}, "right"), taken([1, 0], ids=("x", "y"))])
    assert joined.facts == ("f0", "f0", "f1", "f1", "x", "y")


def test_models_that_do_not_agree_what_a_record_asks_for_are_not_joined():
    rows = [{"id": str(n), "fact": f"f{n // 2}", "right": n % 2} for n in range(4)]
    first = sample({0: rows}, "right")
    assert together([first, first]).facts == first.facts
    fewer = sample({0: rows[1:3]}, "right")
    assert together([fewer, first]).facts == first.facts
    other = sample({0: [{**row, "fact": "f0"} for row in rows]}, "right")
    for pair, said in (((first, other), '"f1", "f0"'), ((other, first), '"f0", "f1"')):
        with pytest.raises(StatisticsError, match=f'which fact the record "2" asks for .{said}.'):
            together(pair)
    without = taken([1, 0, 1, 0], ids=("0", "1", "2", "3"))  # of an older scores file
    with pytest.raises(StatisticsError, match='the record "0"'):
        together([first, without])


def test_the_mean_of_data_sets_without_a_common_record_adds_squared_errors():
    """Against the spread of such means over many draws of both data sets."""
    draw = np.random.default_rng(0)
    sizes, rates = (200, 800), (0.3, 0.8)

    def drawn():
        return [estimate(taken(draw.random(size) < rate)) for size, rate in zip(sizes, rates, strict=True)]

    found = mean_of_independent(drawn())
    means = [mean_of_independent(drawn()).value for _ in range(300)]
    assert found.stderr == pytest.approx(np.std(means), rel=0.15)
    assert found.interval == pytest.approx(
        (found.value - 1.96 * found.stderr, found.value + 1.96 * found.stderr), abs=1e-4
    )
    assert found.n == sum(sizes)
