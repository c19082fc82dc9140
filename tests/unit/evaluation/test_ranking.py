"""The order of defenses: worst cases by hand and by another computation, intervals, and ranks that are ranges."""

import numpy as np
import pytest

from bulwark.evaluation import ranking
from bulwark.evaluation.ranking import Defense, difference_at, holm, ranked
from bulwark.evaluation.statistics import Sample, StatisticsError, estimate
from bulwark.evaluation.worst_case import Attack, halves, worst_case

N = 80


def sample(rate, n=N, seeds=(0,), draw=0, facts=None):
    rng = np.random.default_rng(draw)
    values = (rng.random((len(seeds), n)) < rate).astype(float)
    return Sample(tuple(seeds), tuple(f"{i:04d}" for i in range(n)), values, facts=facts)


def defense(shares, kept=None, seeds=(0,), draw=0):
    """Shares {family: {attack: rate}}; kept {attack: rate of utility}, 1 where not given."""
    names = list(next(iter(shares.values())))
    drawn = {
        family: {
            name: sample(rate, seeds=seeds, draw=draw + 7 * i + 31 * j) for i, (name, rate) in enumerate(of.items())
        }
        for j, (family, of) in enumerate(shares.items())
    }
    utility = {
        name: sample((kept or {}).get(name, 1.0), n=40, seeds=seeds, draw=draw + i) for i, name in enumerate(names)
    }
    return Defense(drawn, utility, names[0])


def made(rates, **told):
    return {name: defense(shares, draw=100 * place, **told) for place, (name, shares) in enumerate(rates.items())}


def test_the_worst_case_of_a_family_is_that_of_the_worst_case_itself():
    one = defense({"f": {"none": 0.9, "a": 0.3, "b": 0.6}, "g": {"none": 0.8, "a": 0.7, "b": 0.5}})
    found = ranked({"one": one}, 0.1).families
    for family, samples in one.shares.items():
        attacks = {name: Attack(samples[name], one.utility[name]) for name in samples}
        again = worst_case(attacks, one.utility["none"], 0.1, highest=False)
        place = found[family].places["one"]
        assert place.worst.value == pytest.approx(again.estimate.value)
        assert tuple(attack for _, attack in place.chosen) == again.chosen
        assert place.worst.interval == pytest.approx(again.estimate.interval, abs=0.06)


def test_the_worst_case_over_families_is_chosen_on_one_half_and_read_on_the_other():
    apart = 0
    for draw in range(12):
        one = defense({"f": {"none": 0.9, "a": 0.5}, "g": {"none": 0.8, "a": 0.5}}, draw=draw)
        place = ranked({"one": one}, 0.1, resamples=50).worst.places["one"]
        readings = []
        for half in (0, 1):
            means = {}
            for family, samples in one.shares.items():
                for name, of in samples.items():
                    first = halves(of.ids)
                    inside = first if half == 0 else ~first
                    means[family, name] = of.values[:, inside].mean(), of.values[:, ~inside].mean()
            picked = min(means, key=lambda key: means[key][0])
            assert place.chosen[half] == picked
            readings.append(means[picked][1])
        assert place.worst.value == pytest.approx(np.mean(readings))
        apart += place.chosen[0] != place.chosen[1]
    assert apart >= 2, "the halves have to choose differently for this to show where a choice is read"


def test_an_attack_that_costs_too_much_does_not_count():
    shares = {"f": {"none": 0.9, "a": 0.1}}
    destroying = ranked({"one": defense(shares, kept={"a": 0.5})}, 0.1).worst.places["one"]
    allowed = ranked({"one": defense(shares, kept={"a": 0.5})}, 0.6).worst.places["one"]
    assert destroying.chosen == (("f", "none"), ("f", "none"))
    assert destroying.worst.value > 0.8
    assert allowed.worst.value < 0.2


def test_the_mean_is_over_the_worst_case_of_each_family():
    one = defense({"f": {"none": 0.9, "a": 0.3}, "g": {"none": 0.6, "a": 0.8}})
    found = ranked({"one": one}, 0.1)
    of_families = [order.places["one"].worst.value for order in found.families.values()]
    assert found.mean.places["one"].worst.value == pytest.approx(np.mean(of_families))


def test_ranks_are_certain_where_defenses_are_far_apart_and_ranges_where_they_are_not():
    rates = {"good": 0.9, "middle": 0.5, "same": 0.5, "bad": 0.05}
    found = ranked(made({name: {"f": {"none": rate}} for name, rate in rates.items()}), 0.1).worst
    ranks = {name: place.ranks for name, place in found.places.items()}
    assert ranks == {"good": (1, 1), "middle": (2, 3), "same": (2, 3), "bad": (4, 4)}
    assert found.p_values["good", "bad"] < 0.05
    assert found.p_values["middle", "same"] > 0.05


def test_records_that_all_agree_prove_nothing_exactly():
    """0 of 8 facts against 2 of 8: the draws of the first never differ, and yet the order is not significant."""
    none, some = np.zeros((1, 8)), np.array([[1.0, 0, 0, 0, 0, 0, 0, 1]])
    ids = tuple("abcdefgh")
    whole = Sample((0,), ids, np.ones((1, 8)))
    two = {
        name: Defense({"f": {"none": Sample((0,), ids, values)}}, {"none": whole}, "none")
        for name, values in (("zero", none), ("some", some))
    }
    found = ranked(two, 0.1).worst
    low, high = found.places["zero"].worst.interval
    assert low == 0.0
    assert high > 0.15
    assert {place.ranks for place in found.places.values()} == {(1, 2)}


def test_records_of_a_fact_are_one_cluster():
    facts = tuple(f"{i // 10}" for i in range(N))
    values = np.array([[float(int(fact) % 2) for fact in facts]])
    ids = tuple(f"{i:04d}" for i in range(N))
    whole = Sample((0,), ids, np.ones((1, N)))

    def found(given):
        only = Defense({"f": {"none": Sample((0,), ids, values, facts=given)}}, {"none": whole}, "none")
        place = ranked({"one": only}, 0.1).worst.places["one"]
        return np.ptp(place.worst.interval), place.draws.std()

    (width, spread), (narrow, little) = found(facts), found(None)
    assert width > 1.5 * narrow
    assert spread > 1.5 * little, "the draws are of facts, not of records"


def test_the_seeds_are_blocks_and_one_seed_stands_for_several():
    shares = {"f": {"none": 0.5}}
    apart = defense(shares, seeds=(0, 1, 2))
    apart.shares["f"]["none"].values[0] = 1.0
    apart.shares["f"]["none"].values[1:] = 0.0
    found = ranked({"apart": apart, "base": defense(shares)}, 0.1).worst.places
    low, high = found["apart"].worst.interval
    assert found["apart"].worst.value == pytest.approx(1 / 3)
    assert low == pytest.approx(0.0, abs=1e-9), "all three draws may be of the seeds at 0"
    assert high >= 2 / 3
    assert found["base"].worst.value == pytest.approx(estimate(defense(shares).shares["f"]["none"]).value)


def test_the_difference_uses_that_records_are_the_same():
    one = sample(0.5, draw=1)
    flipped = one.values.copy()
    flipped[0, :6] = 1 - flipped[0, :6]
    other = Sample(one.seeds, one.ids, flipped)
    whole = {"none": sample(1.0)}
    near = {"a": Defense({"f": {"none": one}}, whole, "none"), "b": Defense({"f": {"none": other}}, whole, "none")}
    far = dict(near, b=Defense({"f": {"none": sample(0.5, draw=2)}}, whole, "none"))

    def width(two):
        places = ranked(two, 0.1).worst.places
        low, high = difference_at(places["a"], places["b"], 0.95)
        return high - low

    assert width(near) < 0.7 * width(far)


def test_holm_by_hand():
    corrected = holm({("a", "b"): 0.04, ("a", "c"): 0.01, ("b", "c"): 0.03})
    assert corrected == pytest.approx({("a", "c"): 0.03, ("b", "c"): 0.06, ("a", "b"): 0.06})


def test_of_defenses_that_are_alike_few_orders_are_called_significant():
    """At 5 % for all pairs of a ranking together, over 40 rankings of 5 defenses that are the same."""
    wrong = 0
    for draw in range(40):
        alike = {f"d{i}": defense({"f": {"none": 0.5, "a": 0.4}}, draw=1000 * draw + 13 * i) for i in range(5)}
        wrong += any(p < 0.05 for p in ranked(alike, 0.1, resamples=500).worst.p_values.values())
    assert wrong <= 6


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(StatisticsError, match="no defenses"):
        ranked({}, 0.1)
    with pytest.raises(StatisticsError, match="different records"):
        ranked(
            {
                "a": defense({"f": {"none": 0.5}}),
                "b": Defense({"f": {"none": sample(0.5, n=9)}}, {"none": sample(1.0, n=40)}, "none"),
            },
            0.1,
        )
    with pytest.raises(StatisticsError, match="no utility"):
        ranked({"a": defense({"f": {"none": 0.5}}, kept={"none": 0.0})}, 0.1)
    assert ranking.SIGNIFICANT == 0.05
