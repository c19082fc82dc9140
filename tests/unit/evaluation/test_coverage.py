"""Intervals and tests hold as often as they say: simulations with fixed seeds, in wide bands.

Records have a difficulty of their own that recipes, seeds and models share, as those of a benchmark do.
"""

from functools import partial

import numpy as np
import pytest
from scipy import stats
from score_samples import write_scores

from bulwark.evaluation.comparisons import compare, compare_over_models
from bulwark.evaluation.statistics import Sample, estimate
from bulwark.reporting import claims
from bulwark.reporting.claims import check_claim, corrected

ROUNDS = 300


def answers(rng, difficulty, seeds, rate, shared):
    """[seeds, records] of 0 and 1 with mean `rate`; shared: how much of the variance is the record's own."""
    noise = rng.standard_normal((seeds, len(difficulty)))
    right = np.sqrt(shared) * difficulty + np.sqrt(1 - shared) * noise < stats.norm.ppf(rate)
    ids = tuple(f"{i:04d}" for i in range(len(difficulty)))
    return Sample(tuple(range(seeds)), ids, right.astype(float))


@pytest.mark.parametrize(("seeds", "rate", "n"), [(1, 0.5, 60), (3, 0.97, 100), (3, 0.2, 300), (3, 0.995, 100)])
def test_the_interval_of_an_estimate(seeds, rate, n):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(ROUNDS):
        low, high = estimate(answers(rng, rng.standard_normal(n), seeds, rate, 0.5)).interval
        covered += low <= rate <= high
    assert 0.92 <= covered / ROUNDS <= 0.995


@pytest.mark.parametrize(
    ("seeds", "rates", "n"),
    [
        # one seed of the base model against three, near the ceiling: where a bootstrap covers 0.81 to 0.91
        ((3, 1), (0.98, 0.97), 100),
        ((3, 1), (0.99, 0.99), 300),
        ((3, 1), (0.995, 0.9), 100),
        ((3, 3), (0.97, 0.97), 60),
        ((3, 3), (0.2, 0.05), 300),
        ((1, 1), (0.7, 0.5), 60),
    ],
)
def test_the_interval_of_a_difference(seeds, rates, n):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(ROUNDS):
        difficulty = rng.standard_normal(n)
        pair = (answers(rng, difficulty, *of, 0.4) for of in zip(seeds, rates, strict=True))
        low, high = compare(*pair, resamples=1).interval
        covered += low <= rates[0] - rates[1] <= high
    assert 0.92 <= covered / ROUNDS <= 0.99


def test_the_interval_of_a_difference_of_means():
    rng = np.random.default_rng(2)
    covered = 0
    for round_ in range(ROUNDS):
        own = rng.standard_normal(80)
        first, second = (own + rng.standard_exponential((3, 80)) for _ in range(2))
        ids = tuple(f"{i:04d}" for i in range(80))
        pair = (Sample((0, 1, 2), ids, values) for values in (first + 0.3, second))
        low, high = compare(*pair, resamples=400, seed=round_).interval
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / ROUNDS <= 0.99


def test_models_that_share_records_do_not_reject_too_often():
    """Six models, whose recipes do equally well on average and favour records of their own kind in all of them."""
    rng = np.random.default_rng(3)
    rejected, left_out = 0, 0
    for round_ in range(ROUNDS):
        first, second = rng.standard_normal((2, 60))  # what is hard for a recipe is so in every model
        pairs = [(answers(rng, first, 1, 0.6, 0.8), answers(rng, second, 1, 0.6, 0.8)) for _ in range(6)]
        found = compare_over_models(pairs, resamples=200, seed=round_)
        rejected += found.p_value < 0.05
        left_out += not found.interval[0] <= 0 <= found.interval[1]
    assert rejected / ROUNDS < 0.09  # taken as independent: 0.37
    assert left_out / ROUNDS < 0.09


def test_the_null_hypothesis_is_rejected_as_often_as_stated():
    rng = np.random.default_rng(4)
    p_values = []
    for round_ in range(ROUNDS):
        difficulty = rng.standard_normal(60)
        pair = (answers(rng, difficulty, 2, 0.7, 0.5) for _ in range(2))
        p_values.append(compare(*pair, resamples=300, seed=round_).p_value)
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.09
    assert 0.25 < np.mean(np.array(p_values) <= 0.5) < 0.55  # equal differences are common, and count


def test_the_p_value_of_a_margin_that_is_just_true_is_uniform_where_it_matters():
    rng = np.random.default_rng(5)
    beyond = []
    for _ in range(ROUNDS):
        difficulty = rng.standard_normal(150)
        pair = (answers(rng, difficulty, 2, rate, 0.4) for rate in (0.8, 0.7))
        beyond.append(compare(*pair, resamples=1000).p_above(0.1))
    # two-sided p-values of a one-sided statement: below 5 % in half of 5 % of the rounds
    assert np.mean(np.array(beyond) < 0.05) < 0.05
    assert 0.02 < np.mean(np.array(beyond) < 0.2) < 0.17


def test_a_page_of_false_claims_seldom_holds_a_significant_one():
    rng = np.random.default_rng(6)
    once, uncorrected = 0, 0
    for _ in range(2000):
        p_values = rng.random(12)
        page = [{"verdict": "reproduced", "confidence": 0.95, "p_verdict": p} for p in p_values]
        once += any(claim["verdict"] == "reproduced" for claim in corrected(page))
        uncorrected += p_values.min() < 0.05
    assert 0.03 < once / 2000 < 0.07
    assert uncorrected / 2000 > 0.4


def test_a_page_of_claims_about_nothing_seldom_holds_a_decided_one(tmp_path, monkeypatch):
    """From scores files to verdicts: two recipes of the same quality on each of many benchmarks."""
    monkeypatch.setattr(claims, "compare", partial(compare, resamples=999))
    rng = np.random.default_rng(7)
    pages, size, n = 40, 16, 60
    before, after = 0, 0
    for number in range(pages):
        checked = []
        for index in range(size):
            cells = []
            for recipe in ("a", "b"):
                rows = [{"id": str(i), "right": int(right)} for i, right in enumerate(rng.random(n) < 0.6)]
                value = sum(row["right"] for row in rows) / n
                metric = {"value": value, "stderr": 0.1, "interval": [0, 1], "n": n, "higher_is_better": True}
                folder = tmp_path / f"{number}-{index}"
                cells.append(write_scores(folder, "m", recipe, 0, "task", {"right": metric}, rows))
            better = {"benchmark": "task", "metric": "right", "recipe": "a", "than": "b", "margin": 0.0}
            spec = {"statement": "s", "source": "p", "study": "x", "conditions": [{"better": better}]}
            checked.append(check_claim(f"c{index}", spec, cells))
        before += any(claim["verdict"] != "undecided" for claim in checked)
        after += any(claim["verdict"] != "undecided" for claim in corrected(checked))
    assert before / pages > 0.2
    assert after / pages < 0.12
