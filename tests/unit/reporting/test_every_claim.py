"""A claim can fail: each of config/claims comes out in each verdict, on scores that are made up to deserve it.

As at full scale and, where config/miniature.yaml changes it, as in the miniature. What the form of a claim excludes is
said by kind of condition (`excluded`), and proven of that kind.
"""

from functools import cache, partial
from pathlib import Path

import pytest
from claim_samples import directions, quantities_of, values, written

from bulwark.config import loading, overlays
from bulwark.evaluation.comparisons import compare
from bulwark.reporting import claims
from bulwark.reporting.claims import check_claim, corrected
from bulwark.reporting.settings import Claim
from bulwark.settings import read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
SCALES = {"full": (), "miniature": (CONFIG / "miniature.yaml",)}
NAMES = sorted(path.stem for path in (CONFIG / "claims").glob("*.yaml"))
CHANGED = read_yaml(CONFIG / "miniature.yaml")["claims"]
VERDICTS = ("reproduced", "not reproduced", "contradicted", "undecided")


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """Enough of them for a p-value far below 5 %, in a twentieth of the time."""
    monkeypatch.setattr(claims, "compare", partial(compare, resamples=500))


@cache
def catalogue(scale):
    return loading.load(overlays.read(SCALES[scale], CONFIG), CONFIG)


def every_claim():
    """(scale, name) of all claims, in the miniature of those alone that it changes."""
    for name in NAMES:
        yield "full", name
        if name in CHANGED:
            yield "miniature", name


def excluded(claim, verdict):
    """Why a claim of this form cannot come out so; "" if it can."""
    headline, *others = claim.conditions
    if verdict == "contradicted" and headline.kind in ("at_least", "at_most"):
        return "a value beyond its bound says that the claim is not so, and there is nothing that it is worse than"
    if verdict == "not reproduced" and not others:
        if headline.kind in ("not_worse", "equal"):
            return "beyond the margin is the opposite of what is claimed"
        if headline.kind == "better" and not headline.terms.margin:
            return "between better and worse there is nothing but too few records"
    return ""


def found(folder, claim, scale, wanted, wide=()):
    """The claim's verdict on scores at which its conditions come out as wanted; None where no scores do that."""
    given = values(claim.conditions, wanted, directions(claim, catalogue(scale)))
    if not given:
        return None
    spread = [quantity for number in wide for quantity in quantities_of(claim.conditions[number])]
    cells = written(folder, claim, catalogue(scale), given, spread)
    [checked] = corrected([check_claim("claim", claim, cells)])
    [model] = checked["models"].values()
    for number, outcome in wanted.items():
        if not wide:
            assert model["conditions"][number]["outcome"] == outcome, model["conditions"][number]["text"]
        elif outcome == "open":
            assert model["conditions"][number]["outcome"] == "open", model["conditions"][number]["text"]
    return checked["verdict"]


def missing(condition, first):
    """How a condition can be missed: as its kind allows, the headline (first) without being contradicted."""
    kind = condition.kind
    fails = kind in ("at_least", "at_most") or (kind == "better" and condition.terms.margin)
    return ["fails"] * bool(fails) + ["opposite"] * (kind not in ("at_least", "at_most") and not first)


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize(("scale", "name"), every_claim())
def test_every_claim_can_come_out_in_each_verdict(tmp_path, scale, name, verdict):
    """And each of its conditions counts: if it is missed, or open, the claim is not reproduced, or undecided."""
    claim = catalogue(scale).claims[name].of_study(("attack",))  # where its study has none yet
    every = range(len(claim.conditions))
    held = dict.fromkeys(every, "holds")
    if reason := excluded(claim, verdict):
        assert not reaches(claim, verdict), f"{name} is said not to be {verdict}: {reason}"
        return
    if verdict == "reproduced":
        assert found(tmp_path, claim, scale, held) == verdict
    elif verdict == "contradicted":
        assert found(tmp_path, claim, scale, {0: "opposite"}) == verdict
    elif verdict == "undecided":
        for number in every:
            assert found(tmp_path / str(number), claim, scale, held | {number: "open"}, wide=[number]) == verdict
    else:
        seen = []
        for number in every:
            for how in missing(claim.conditions[number], number == 0):
                # The others hold, or at least the headline does; where it is bound up with this one, it misses its own
                least = [held, {0: "holds"}, {0: "fails"} if "fails" in missing(claim.conditions[0], True) else {}]
                for others in least:
                    came = found(tmp_path / f"{number}{how}{len(others)}", claim, scale, others | {number: how})
                    if came is not None:
                        seen.append(number)
                        assert came == verdict, claim.conditions[number]
                        break
        assert set(seen) == {number for number in every if missing(claim.conditions[number], number == 0)}


def reaches(claim, verdict):
    """Whether any condition of the claim can be missed in the way that the verdict needs."""
    if verdict == "contradicted":
        return "opposite" in missing(claim.conditions[0], False)
    return any(missing(condition, number == 0) for number, condition in enumerate(claim.conditions))


FORMS = {
    "better by a margin": ({"better": {"than": "other", "margin": 0.1}}, VERDICTS),
    "better": ({"better": {"than": "other"}}, ("reproduced", "contradicted", "undecided")),
    "not worse": ({"not_worse": {"than": "other", "margin": 0.1}}, ("reproduced", "contradicted", "undecided")),
    "equal": ({"equal": {"than": "other", "margin": 0.1}}, ("reproduced", "contradicted", "undecided")),
    "at least": ({"at_least": {"value": 0.5}}, ("reproduced", "not reproduced", "undecided")),
    "at most": ({"at_most": {"value": 0.5}}, ("reproduced", "not reproduced", "undecided")),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_claim_of_one_condition_can_come_out_as(tmp_path, form):
    """Over all values of its metric and two spreads of records: what `excluded` says of a kind of condition."""
    stated, possible = FORMS[form]
    [(kind, terms)] = stated.items()
    terms = {"benchmark": "sep", "metric": "separation", "recipe": "own", **terms}
    claim = validated(Claim, {"statement": "s", "source": "p", "study": "x", "conditions": [{kind: terms}]}, "here")
    came = set()
    for step in range(11):
        for wide in ((), quantities_of(claim.conditions[0])):
            given = {quantity: 0.5 for quantity in quantities_of(claim.conditions[0])} | {
                ("own", "sep", "separation"): step / 10
            }
            cells = written(tmp_path / f"{step}{bool(wide)}", claim, catalogue("full"), given, wide)
            came.add(check_claim("c", claim, cells)["verdict"])
    assert came == set(possible)
    assert {verdict for verdict in VERDICTS if excluded(claim, verdict)} == set(VERDICTS) - came


@pytest.mark.parametrize(("scale", "name"), every_claim())
def test_what_is_claimed_to_be_better_is_so_by_an_effect_that_matters(scale, name):
    """Without a least effect a difference of nothing is reproduced if records are many enough."""
    conditions = catalogue(scale).claims[name].conditions
    assert [each.terms for each in conditions if each.kind == "better" and not each.terms.margin] == []
