"""The worst case over attacks: against a plain computation, and what it is for: no profit from looking often."""

import hashlib
import statistics

import numpy as np
import pytest

from bulwark.evaluation.statistics import Sample, StatisticsError
from bulwark.evaluation.worst_case import Attack, _counts, _Half, halves, worst_case

NAN = np.nan
IDS = tuple(f"r{n:03d}" for n in range(24))
FACTS = tuple(f"u{n:03d}" for n in range(30))


def sample(values, ids=IDS, seeds=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    return Sample(seeds or tuple(range(len(values))), ids[: values.shape[1]], values)


def made(rng, count=5, seeds=2, missing=0.1):
    """Attacks with random harm and utility, some records not counting."""
    attacks = {}
    for number in range(count):
        harm = (rng.random((seeds, len(IDS))) < 0.2 + 0.15 * number).astype(float)
        harm[rng.random(harm.shape) < missing] = NAN
        utility = (rng.random((seeds, len(FACTS))) < 0.95 - 0.08 * number).astype(float)
        attacks[f"attack.{number}"] = Attack(sample(harm), sample(utility, FACTS))
    return attacks, sample((rng.random((seeds, len(FACTS))) < 0.9).astype(float), FACTS)


def first_half(ids):
    """By hand: the records in the order of their digests, the first half of them."""
    ordered = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: (len(ids) + 1) // 2])


def mean(of, among):
    """The mean over seeds of the mean over the records among `among` that count, with plain Python."""
    rows = [
        [float(value) for name, value in zip(of.ids, row, strict=True) if name in among and value == value]
        for row in of.values
    ]
    return statistics.fmean(statistics.fmean(row) for row in rows)


def by_hand(attacks, before, loss, most=max, utility=1):
    """What the worst case is, written down a second time: value, and who is chosen on which half."""
    read, chosen = {}, []
    halves_of = {ids: (first_half(ids), set(ids) - first_half(ids)) for ids in (IDS, FACTS)}
    for half in (0, 1):
        bound = (1 - utility * loss) * mean(before, halves_of[FACTS][half])
        eligible = [
            name
            for name, attack in attacks.items()
            if utility * mean(attack.utility, halves_of[FACTS][half]) >= utility * bound
        ]
        if not eligible:
            chosen.append(None)
            continue
        harms = {name: mean(attacks[name].harm, halves_of[IDS][half]) for name in eligible}
        chosen.append(next(name for name in eligible if harms[name] == most(harms.values())))
        other = halves_of[IDS][1 - half]
        harm = attacks[chosen[-1]].harm
        for seed, row in zip(harm.seeds, harm.values, strict=True):
            read.setdefault(seed, []).extend(
                v for name, v in zip(harm.ids, row, strict=True) if name in other and v == v
            )
    value = None if None in chosen else statistics.fmean(statistics.fmean(values) for values in read.values())
    return value, tuple(chosen)


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("number", range(6))
def test_it_is_what_a_second_computation_says(loss, number):
    attacks, before = made(np.random.default_rng(number))
    found = worst_case(attacks, before, loss, resamples=50)
    value, chosen = by_hand(attacks, before, loss)
    assert found.chosen == chosen
    assert found.estimate.value == (None if value is None else pytest.approx(value, abs=1e-12))


@pytest.mark.parametrize("number", range(4))
def test_harm_can_be_a_low_value_and_utility_too(number):
    attacks, before = made(np.random.default_rng(number))
    for options, other in (({"highest": False}, {"most": min}), ({"higher_utility": False}, {"utility": -1})):
        found = worst_case(attacks, before, 0.1, resamples=50, **options)
        value, chosen = by_hand(attacks, before, 0.1, **other)
        assert found.chosen == chosen
        assert found.estimate.value == (None if value is None else pytest.approx(value, abs=1e-12))


def test_a_utility_that_is_better_lower_may_rise_by_the_share():
    """From 0.5 to 0.55 at a tenth: 0.54 is eligible, 0.6 is not, whatever harm it does."""
    before = sample(np.full(24, 0.5))
    attacks = {
        name: Attack(sample(np.full(24, harm)), sample(np.full(24, utility)))
        for name, harm, utility in (("mild", 0.4, 0.54), ("severe", 0.9, 0.6), ("harmless", 0.1, 0.3))
    }
    found = worst_case(attacks, before, 0.1, higher_utility=False, resamples=20)
    assert found.chosen == ("mild", "mild")
    assert found.estimate.value == pytest.approx(0.4)


def test_attacks_that_do_not_differ_profit_nothing_from_being_many():
    """All harm is by chance at a rate of 30 %: the best of 50 seems much worse on the records that choose it."""
    values, naive = [], []
    for number in range(40):
        rng = np.random.default_rng(number)
        utility = sample(np.ones(len(FACTS)), FACTS)
        attacks = {f"a.{n}": Attack(sample(rng.random(24) < 0.3), utility) for n in range(50)}
        values.append(worst_case(attacks, utility, 0.05, resamples=2).estimate.value)
        naive.append(max(float(attack.harm.values.mean()) for attack in attacks.values()))
    assert statistics.fmean(values) == pytest.approx(0.3, abs=0.05)
    assert statistics.fmean(naive) > 0.45


def reworded(rng, number, utility, facts=12, phrasings=4, rate=0.3):
    """Attacks that bring back facts by chance, each in all its phrasings or in none; named by the fact, and not."""
    ids = tuple(f"{number}-{n:03d}" for n in range(facts * phrasings))
    named = tuple(f"{number}/{n // phrasings}" for n in range(len(ids)))
    harms = {f"a.{n}": np.repeat(rng.random((1, facts)) < rate, phrasings, axis=1).astype(float) for n in range(50)}
    return (
        {name: Attack(Sample((0,), ids, values, facts=given), utility) for name, values in harms.items()}
        for given in (named, None)
    )


def test_phrasings_of_a_fact_do_not_read_what_they_have_chosen():
    """As above, but each fact is asked for four times: divided by record, the best of 50 seems much worse after all."""
    by_fact, by_record = [], []
    utility = sample(np.ones(len(FACTS)), FACTS)
    for number in range(40):
        with_facts, without = reworded(np.random.default_rng(number), number, utility)
        by_fact.append(worst_case(with_facts, utility, 0.05, resamples=2).estimate.value)
        by_record.append(worst_case(without, utility, 0.05, resamples=2).estimate.value)
    assert statistics.fmean(by_fact) == pytest.approx(0.3, abs=0.06)
    assert statistics.fmean(by_record) > 0.4


def test_halves_are_of_facts_and_so_is_what_a_resample_draws():
    assert halves(("a", "b", "a", "c", "b", "a")).tolist() == [name in first_half({"a", "b", "c"}) for name in "abacba"]
    utility = sample(np.ones(len(FACTS)), FACTS)
    with_facts, without = reworded(np.random.default_rng(1), 1, utility)
    one, other = ({"a": next(iter(attacks.values()))} for attacks in (with_facts, without))
    clustered, loose = (worst_case(a, utility, 0.05, resamples=4000).estimate for a in (one, other))
    assert clustered.value == loose.value, "with one attack there is nothing to choose"
    assert clustered.stderr == pytest.approx(2 * loose.stderr, rel=0.1), "12 facts, not 48 records"
    for part in _Half.of(one["a"].harm.values[None], one["a"].harm):
        drawn = _counts(np.random.default_rng(0), part, 20).reshape(-1, 4, 20)
        assert (drawn == drawn[:, :1]).all(), "a fact is drawn with all its phrasings"
        assert set(drawn[:, 0].sum(axis=0)) == {6.0}
    facts = np.asarray(one["a"].harm.values).reshape(12, 4)[:, 0]
    parts = [facts[halves(tuple(f"1/{n}" for n in range(12))) == side] for side in (True, False)]
    rng = np.random.default_rng(0)
    draws = [np.mean([rng.choice(part, len(part)).mean() for part in parts]) for _ in range(4000)]
    assert clustered.interval[0] <= np.quantile(draws, 0.025) + 0.02
    assert clustered.interval[1] >= np.quantile(draws, 0.975) - 0.02


def test_the_most_harmful_attack_does_not_count_if_it_costs_too_much():
    nothing, all_of_it = np.zeros(24), np.ones(24)
    attacks = {
        "mild": Attack(sample(nothing), sample(np.ones(30), FACTS)),
        "brute": Attack(sample(all_of_it), sample([1.0] * 15 + [0.0] * 15, FACTS)),
    }
    before = sample(np.ones(30), FACTS)
    assert worst_case(attacks, before, 0.1).chosen == ("mild", "mild")
    found = worst_case(attacks, before, 0.9)
    assert found.chosen == ("brute", "brute")
    assert found.estimate.value == 1.0
    assert found.kept == pytest.approx(0.5)
    assert found.estimate.interval[0] < 0.9, "24 records that agree do not prove a rate of exactly 1"


def test_the_loss_is_relative_to_what_there_was_before():
    before = sample([1.0] * 15 + [0.0] * 15, FACTS)
    exactly = Attack(sample(np.ones(24)), sample([1.0] * 15 + [0.0] * 15, FACTS))
    found = worst_case({"a": exactly}, before, 0.0, resamples=20)
    assert (found.estimate.value, found.before, found.kept) == (1.0, 0.5, 1.0)


def test_without_an_eligible_attack_there_is_no_value_and_it_says_so():
    attacks = {"a": Attack(sample(np.ones(24)), sample(np.zeros(30), FACTS))}
    found = worst_case(attacks, sample(np.ones(30), FACTS), 0.1)
    assert (found.chosen, found.eligible, found.sample) == ((None, None), (0, 0), None)
    assert (found.estimate.value, found.estimate.interval, found.kept) == (None, None, None)
    on_one = np.where(halves(FACTS), 1.0, 0.0)
    found = worst_case({"a": Attack(sample(np.ones(24)), sample(on_one, FACTS))}, sample(np.ones(30), FACTS), 0.1)
    assert (found.chosen, found.estimate.value) == (("a", None), None)
    nothing = sample(np.zeros(30), FACTS)
    found = worst_case({"a": Attack(sample(np.ones(24)), nothing)}, nothing, 0.1)
    assert (found.chosen, found.before, found.estimate.value) == ((None, None), 0.0, None)


def test_the_interval_is_that_of_a_bootstrap_that_chooses_anew():
    """A second, slow bootstrap over records within halves and over seeds, with the computation by hand."""
    rng = np.random.default_rng(3)
    attacks, before = made(rng, count=3, seeds=3, missing=0.0)
    draws = []
    places = {ids: [np.flatnonzero(side) for side in (halves(ids), ~halves(ids))] for ids in (IDS, FACTS)}
    for _ in range(400):
        seeds = rng.integers(0, 3, 3)
        drawn = {ids: [rng.choice(side, len(side)) for side in places[ids]] for ids in (IDS, FACTS)}
        read = []
        for half in (0, 1):
            kept = {n: a.utility.values[np.ix_(seeds, drawn[FACTS][half])].mean() for n, a in attacks.items()}
            bound = 0.8 * before.values[np.ix_(seeds, drawn[FACTS][half])].mean()
            eligible = [n for n in attacks if kept[n] >= bound - 1e-12]
            harms = {n: attacks[n].harm.values[np.ix_(seeds, drawn[IDS][half])].mean() for n in eligible}
            worst = max(harms, key=harms.get) if harms else None
            read.append(attacks[worst].harm.values[np.ix_(seeds, drawn[IDS][1 - half])].mean() if worst else NAN)
        draws.append(np.mean(read))
    found = worst_case(attacks, before, 0.2, resamples=4000)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    assert found.estimate.interval[0] == pytest.approx(low, abs=0.06)
    assert found.estimate.interval[1] == pytest.approx(high, abs=0.06)
    assert found.undefined == pytest.approx(np.isnan(draws).mean(), abs=0.06)
    wider = found.estimate.at(0.99)
    assert wider[0] < found.estimate.interval[0] < found.estimate.interval[1] < wider[1]


def test_a_resample_reads_other_records_than_it_chooses_by():
    """Of 50 attacks at 30 %, the worst by 100 records seems to be near 41 %, and in resamples higher still."""
    rng = np.random.default_rng(0)
    ids = tuple(f"n{n}" for n in range(200))
    utility = sample(np.ones(30), FACTS)
    attacks = {
        f"a.{n}": Attack(Sample((0,), ids, (rng.random((1, 200)) < 0.3).astype(float)), utility) for n in range(50)
    }
    low, high = worst_case(attacks, utility, 0.05, resamples=500).estimate.interval
    assert low < 0.3 < high < 0.42


def test_trainings_that_differ_make_the_interval_wide():
    """At one seed every fact comes back, at the other none: what a third would do is open."""
    attack = Attack(sample([np.zeros(24), np.ones(24)]), sample(np.ones((2, 30)), FACTS))
    found = worst_case({"a": attack}, sample(np.ones((2, 30)), FACTS), 0.1, resamples=500)
    assert found.estimate.value == 0.5
    assert found.estimate.interval == (0.0, 1.0)
    assert found.estimate.by_seed == {0: 0.0, 1: 1.0}


def test_the_interval_covers_the_harm_of_the_attack_that_is_worst():
    """One attack of 60 % among harmless ones: 95 % intervals hold 0.6 in about 95 of 100 studies."""
    held = 0
    for number in range(60):
        rng = np.random.default_rng(number)
        ids = tuple(f"{number}-{n}" for n in range(200))
        rates = (0.6, 0.2, 0.2, 0.1)
        full = Sample((0,), FACTS, np.ones((1, 30)))
        attacks = {
            f"a.{n}": Attack(Sample((0,), ids, (rng.random((1, 200)) < rate).astype(float)), full)
            for n, rate in enumerate(rates)
        }
        low, high = worst_case(attacks, full, 0.05, resamples=300).estimate.interval
        held += low <= 0.6 <= high
    assert 53 <= held <= 60


def test_the_order_of_records_and_of_attacks_does_not_matter():
    attacks, before = made(np.random.default_rng(8))
    order = np.random.default_rng(0).permutation(len(IDS))
    turned = {
        name: Attack(Sample(a.harm.seeds, tuple(np.array(IDS)[order]), a.harm.values[:, order]), a.utility)
        for name, a in reversed(attacks.items())
    }
    assert worst_case(turned, before, 0.3).estimate.value == worst_case(attacks, before, 0.3).estimate.value
    assert abs(int(halves(IDS).sum()) - 12) == 0
    assert halves(IDS[:5]).sum() == 3


def test_a_base_model_with_one_seed_stands_against_several():
    attacks, before = made(np.random.default_rng(1), seeds=3)
    single = Sample((0,), before.ids, before.values[:1])
    assert worst_case(attacks, single, 0.5, resamples=20).estimate.value is not None


def test_what_cannot_be_compared_is_refused():
    attacks, before = made(np.random.default_rng(1))
    with pytest.raises(StatisticsError, match="no attacks"):
        worst_case({}, before, 0.1)
    other = Attack(sample(np.ones((2, 20))), attacks["attack.0"].utility)
    with pytest.raises(StatisticsError, match=r"other and attack\.0.*different records"):
        worst_case({**attacks, "other": other}, before, 0.1)
    later = Attack(sample(np.ones((2, 24)), seeds=(0, 5)), attacks["attack.0"].utility)
    with pytest.raises(StatisticsError, match=r"later was measured at the seeds \[0, 5\]"):
        worst_case({**attacks, "later": later}, before, 0.1)
    old = attacks["attack.1"].harm
    facts = Sample(old.seeds, old.ids, old.values, facts=tuple(name[:2] for name in old.ids))
    with pytest.raises(StatisticsError, match=r"attack\.1 and attack\.0.*which fact.*old"):
        worst_case({**attacks, "attack.1": Attack(facts, attacks["attack.1"].utility)}, before, 0.1)
    with pytest.raises(StatisticsError, match=r"before the attacks has the seeds \[0, 7\]"):
        worst_case(attacks, sample(before.values, FACTS, seeds=(0, 7)), 0.1)
