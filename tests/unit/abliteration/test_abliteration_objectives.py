"""What a search minimises, and what it calls best."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from bulwark.abliteration.search.objectives import Measures, behaviour, regime_of, scores, worst
from bulwark.abliteration.search.outcome import cost, hypervolumes, marked
from bulwark.abliteration.search.pareto import (
    chosen,
    dominates,
    front,
    front_volume,
    hypervolume,
    log_share,
    surely_dominated,
)
from bulwark.abliteration.settings import ObjectiveSettings, SelectionSettings
from bulwark.errors import BulwarkError


def measured(
    kl: float = 0.2, refusals: int = 10, over: int = 4, hits: float = 1.5, compliance: float = 0.4
) -> Measures:
    return Measures(kl, refusals, 40, over, 20, hits, compliance)


BASE = measured(0.0, 30, 2, 2.0, 0.1)
LOW = measured(0.0, 6, 2, 1.0, 0.7)


@pytest.mark.parametrize(
    ("refusals", "regime"),
    [(0, "low_refusal_base"), (5, "low_refusal_base"), (6, "low_refusal_base"), (7, "refusal_reduction")],
)
def test_a_base_that_refuses_as_much_as_the_bound_is_of_the_low_regime(refusals, regime):
    """6 of 40 is .15 exactly."""
    assert regime_of(measured(refusals=refusals), ObjectiveSettings(regime="auto")) == regime
    fixed = ObjectiveSettings(regime="refusal_reduction")
    assert regime_of(measured(refusals=refusals), fixed) == "refusal_reduction"


@pytest.mark.parametrize(("count", "total"), [(3, 20), (15, 100), (30, 200), (9, 60)])
def test_the_bound_is_met_whatever_the_number_of_prompts(count, total):
    assert regime_of(Measures(0.0, count, total), ObjectiveSettings(regime="auto")) == "low_refusal_base"
    assert regime_of(Measures(0.0, count + 1, total), ObjectiveSettings(regime="auto")) == "refusal_reduction"


def test_heretics_objectives_are_kl_and_the_rate():
    assert scores(measured(), BASE, ObjectiveSettings()) == (0.2, 10 / 40)


def test_iconoclasts_regime_for_a_base_that_refuses():
    settings = ObjectiveSettings(
        relative=True,
        kl_target=0.01,
        overrefusal=0.25,
        disclaimers=0.05,
        compliance_gap=0.35,
        overrefusal_relative=False,
        regime="auto",
    )
    expected = 10 / 30 + 0.25 * 4 / 20 + 0.05 * 1.5 + 0.35 * (1 - 0.4)
    assert scores(measured(), BASE, settings) == pytest.approx((0.2, expected))


def test_iconoclasts_regime_for_a_base_that_refuses_little_counts_what_exceeds_it():
    settings = ObjectiveSettings(
        relative=True,
        overrefusal=0.25,
        disclaimers=0.05,
        compliance_gap=0.35,
        overrefusal_relative=False,
        regime="auto",
    )
    expected = (10 - 6) / 40 + 0.25 * 4 / 20 + 0.05 * 0.5 + 0.35 * 0.3
    assert behaviour(measured(), LOW, settings) == pytest.approx(expected)
    better = measured(refusals=2, over=0, hits=0.5, compliance=0.9)
    assert behaviour(better, LOW, settings) == 0.0


def test_overrefusals_beyond_the_base_models_count_by_default():
    settings = ObjectiveSettings(overrefusal=0.5)
    assert behaviour(measured(over=4), BASE, settings) == pytest.approx(0.25 + 0.5 * 0.1)
    assert behaviour(measured(over=1), BASE, settings) == pytest.approx(0.25)


@pytest.mark.parametrize("term", ["overrefusal", "disclaimers", "compliance_gap"])
@pytest.mark.parametrize("base", [BASE, LOW])
def test_penalties_enter_linearly(term, base):
    found = measured()
    values = [
        behaviour(found, base, ObjectiveSettings(**{term: weight}, regime="auto")) for weight in (0.0, 0.5, 1.0, 3.0)
    ]
    slope = values[2] - values[0]
    assert slope > 0
    assert values[1] - values[0] == pytest.approx(0.5 * slope)
    assert values[3] - values[0] == pytest.approx(3 * slope)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_below_its_target_kl_is_no_longer_rewarded(scale):
    settings = ObjectiveSettings(relative=True, kl_target=0.1, kl_scale=scale)
    at, below = measured(0.1), measured(0.0999)
    assert scores(at, BASE, settings)[0] == pytest.approx(0.1 / scale)
    assert scores(below, BASE, settings)[0] == pytest.approx(10 / 30 * 0.1 / scale)
    assert scores(measured(0.0), BASE, settings) == scores(below, BASE, settings)
    doing_nothing = measured(0.0, 30)
    assert scores(doing_nothing, BASE, settings)[0] == pytest.approx(0.1 / scale)  # continuous there


def test_a_base_that_refuses_nothing_does_not_divide_by_zero():
    none = measured(0.0, 0)
    assert behaviour(measured(), none, ObjectiveSettings(relative=True)) == 10 / 40


@pytest.mark.parametrize("target", [0.0, 0.01])
def test_a_kl_that_is_not_a_number_is_no_good_kl(target):
    found = worst(math.nan, BASE, ObjectiveSettings(kl_target=target))
    value, _ = scores(found, BASE, ObjectiveSettings(kl_target=target))
    assert not value <= 100


def test_what_the_gate_stops_counts_as_refusing_everything():
    settings = ObjectiveSettings(overrefusal=1.0, disclaimers=0.1, compliance_gap=0.1)
    found = worst(3.0, BASE, settings)
    assert (found.kl, found.refusal_rate, found.overrefusal_rate) == (3.0, 1.0, 1.0)
    assert behaviour(found, BASE, settings) >= behaviour(measured(), BASE, settings)
    assert worst(3.0, Measures(0.0, 3, 4), ObjectiveSettings()).overrefusals is None


# The front


def brute(points) -> list[int]:
    return [
        i
        for i, p in enumerate(points)
        if not any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for j, q in enumerate(points) if j != i)
    ]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_what_nothing_dominates(dimensions, seed):
    generator = random.Random(seed)
    points = [tuple(generator.randint(0, 5) for _ in range(dimensions)) for _ in range(40)]
    assert front(points) == brute(points)


def test_equal_points_are_on_the_front_together_and_do_not_dominate_each_other():
    points = [(1, 2), (1, 2), (2, 1), (2, 2), (1, 3)]
    assert front(points) == [0, 1, 2]
    assert not dominates((1, 2), (1, 2))
    assert dominates((1, 2), (1, 3))
    assert front([]) == []


def test_a_trial_of_more_overrefusals_and_less_kl_is_on_the_front():
    """ICONOCLAST's filter drops it."""
    assert front([(3, 0, 0.5), (3, 4, 0.1)]) == [0, 1]


def test_the_choice_is_lexicographic_and_another_thing_than_dominance():
    points = [(5, 0), (3, 2), (3, 1), (3, 1), (0, 9)]
    kl = [0.01, 0.02, 0.09, 0.05, 0.4]
    assert chosen(points, kl, None) == 4
    assert chosen(points, kl, 0.1) == 3
    assert chosen(points, kl, 0.05) == 3  # the bound is met, too
    assert chosen(points, kl, 0.03) == 1
    assert chosen(points, kl, 0.001) == 0  # none keeps it: the lowest KL
    assert set(front([(*point, value) for point, value in zip(points, kl, strict=True)])) == {0, 1, 3, 4}


def test_the_hypervolume_of_few_points_by_hand():
    assert hypervolume([], (1, 1)) == 0
    assert hypervolume([(0.5, 0.5)], (1, 1)) == pytest.approx(0.25)
    assert hypervolume([(0.2, 0.6), (0.5, 0.1), (0.6, 0.5)], (1, 1)) == pytest.approx(0.3 * 0.4 + 0.5 * 0.9)
    assert hypervolume([(0.2, 0.6), (0.2, 0.3), (0.2, 0.6)], (1, 1)) == pytest.approx(0.8 * 0.7)
    assert hypervolume([(1.0, 0.0), (2.0, 0.0), (0.0, 1.5)], (1, 1)) == 0
    assert hypervolume([(0.0, 0.0)], (1, 1)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_hypervolume_is_the_share_of_random_points_that_are_dominated(seed):
    generator = random.Random(seed)
    points = [(1.2 * generator.random(), 1.2 * generator.random()) for _ in range(12)]
    drawn = [(generator.random(), generator.random()) for _ in range(20_000)]
    share = sum(any(a <= x and b <= y for a, b in points) for x, y in drawn) / len(drawn)
    assert hypervolume(points, (1, 1)) == pytest.approx(share, abs=0.015)
    assert hypervolume(points[::-1], (1, 1)) == pytest.approx(hypervolume(points, (1, 1)))


def test_a_trial_is_given_up_only_where_its_bound_is_worse_than_a_known_one_at_no_more_kl():
    assert surely_dominated(20, 20, 0.5, [(0.3, 0.4)], 0.95)
    assert surely_dominated(20, 20, 0.5, [(0.3, 0.5)], 0.95)
    assert not surely_dominated(20, 20, 0.5, [(0.3, 0.6)], 0.95)
    assert not surely_dominated(8, 20, 0.5, [(0.3, 0.4)], 0.95)
    assert not surely_dominated(0, 20, 0.5, [(0.0, 0.0)], 0.95)
    assert not surely_dominated(20, 20, 0.5, [], 0.95)


# The trials of a search, as plain data


def trial(number: int, refusals: int, kl: float | None, over: int | None = None, **more) -> dict:
    return {
        "number": number,
        "refusals": refusals,
        "refusal_rate": refusals / 20,
        "n": 20,
        "kl": kl,
        "overrefusals": over,
        "gated": False,
        "dominated": False,
        "seconds": 2.0,
        "tokens": 5,
        **more,
    }


TRIALS = [
    trial(0, 20, 0.0),
    trial(1, 20, None, gated=True),
    trial(2, 8, 0.05),
    trial(3, 1, 0.3),
    trial(4, 12, 0.2, dominated=True),
    trial(5, 9, 0.06),
]


def test_only_whole_trials_are_on_the_front_or_chosen():
    found = marked(TRIALS, SelectionSettings(kl_at_most=0.1), 1.0)
    assert [one["number"] for one in found if one["pareto"]] == [0, 2, 3]
    assert [one["number"] for one in found if one["chosen"]] == [2]
    assert [one["number"] for one in marked(TRIALS, SelectionSettings(), 1.0) if one["chosen"]] == [3]
    assert all(low <= one["refusal_rate"] <= high for one in found for low, high in [one["interval"]])
    with pytest.raises(BulwarkError, match=r"All 1 trials were stopped by the KL gate \(1\.0\)"):
        marked(TRIALS[1:2], SelectionSettings(), 1.0)


def test_cost_is_told_up_to_the_first_trial_that_reaches_it_within_the_bound():
    base = Measures(0.0, 20, 20)
    found = cost(TRIALS, base, 0.1, 3.0)
    assert (found["trials_to_50"], found["seconds_to_50"]) == (3, 9.0)
    assert (found["trials_to_90"], found["seconds_to_90"]) == (None, None)
    assert cost(TRIALS, base, None, 3.0)["trials_to_90"] == 4
    assert (found["search_seconds"], found["tokens"]) == (12.0, 30)


def test_the_hypervolume_never_falls_with_trials():
    found = hypervolumes(TRIALS)
    assert len(found) == len(TRIALS)
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert found[-1] == pytest.approx(front_volume([(0.0, 1.0), (0.05, 0.4), (0.3, 0.05)]))


def test_ten_times_the_kl_is_as_much_wherever_it_lies():
    assert [log_share(kl) for kl in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)] == pytest.approx(
        [0, 0, 0, 0.25, 0.5, 0.75, 1]
    )
    few, more = (front_volume([(kl, 0.0)]) for kl in (1e-3, 1e-2))
    assert (few, more) == (pytest.approx(0.75), pytest.approx(0.5))  # 0.999 and 0.99 on a linear scale
    assert front_volume([(2.0, 0.0)]) == 0
