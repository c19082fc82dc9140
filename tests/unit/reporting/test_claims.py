"""Claims: each verdict from scores that deserve it, and the files that readers rely on."""

from pathlib import Path

import pytest
from score_samples import draws, sep_cell, study_cells, tasks_cell, write_scores

from bulwark.evaluation.statistics import StatisticsError
from bulwark.reporting.claims import check_claim, corrected
from bulwark.reporting.results import ResultsError
from bulwark.reporting.settings import Claim
from bulwark.settings import ConfigurationError, read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
SEPARATES = CONFIG / "claims" / "aside_separates.yaml"
FIXED = {"id", "statement", "source", "verdict", "effect", "interval", "n", "seeds", "p_value"}


def claim(*conditions, **more):
    return {"statement": "s", "source": "p", "study": "x", "conditions": list(conditions), **more}


def against(metric, margin, benchmark="sep"):
    return {"benchmark": benchmark, "metric": metric, "recipe": "aside", "than": "vanilla", "margin": margin}


def better(metric="separation", margin=0.05, benchmark="sep"):
    return {"better": against(metric, margin, benchmark)}


def two_recipes(folder, aside, vanilla, n=200, seeds=(0, 1), utility=(1.0, 1.0), model="m"):
    """SEP cells with these separations and utilities."""
    return [
        sep_cell(
            folder, model, recipe, seed,
            draws(1 - rate, n, f"{recipe}{seed}{model}"), draws(followed, n, f"T{recipe}{seed}"),
        )
        for recipe, rate, followed in (("aside", aside, utility[0]), ("vanilla", vanilla, utility[1]))
        for seed in seeds
    ]  # fmt: skip


def verdict(spec, cells):
    return check_claim("c", spec, cells)["verdict"]


def test_the_claim_of_the_paper_on_a_study_that_bears_it_out(tmp_path):
    found = check_claim("aside_separates", read_yaml(SEPARATES), study_cells(tmp_path))
    assert set(found) >= FIXED
    assert (found["id"], found["verdict"], found["seeds"]) == ("aside_separates", "reproduced", [0, 1])
    assert found["interval"][0] < found["effect"] < found["interval"][1]
    assert found["effect"] > 0.5
    assert found["p_value"] < 0.001
    assert 90 < found["n"] <= 120
    assert [c["text"] for c in found["not_measured"]] == ["accuracy on tasks: aside at most 0.05 worse than vanilla"]
    by_model = found["models"]["miniature"]["conditions"]
    assert [entry["outcome"] for entry in by_model] == ["holds", "holds"]
    assert set(by_model[0]["by_seed"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("aside", "vanilla", "n", "expected", "reason"),
    [
        (0.8, 0.5, 200, "reproduced", "it is better"),
        (0.5, 0.8, 200, "contradicted", "it is worse"),
        (0.5, 0.5, 3000, "not reproduced", "any improvement is below the margin"),
        (0.55, 0.5, 40, "undecided", "from no improvement to more than the margin"),
    ],
)
def test_better(tmp_path, aside, vanilla, n, expected, reason):
    found = check_claim("c", claim(better()), two_recipes(tmp_path, aside, vanilla, n))
    assert found["verdict"] == expected
    assert reason in found["models"]["m"]["conditions"][0]["reason"]


def test_an_improvement_too_small_to_matter_is_not_reproduced(tmp_path):
    cells = two_recipes(tmp_path, 1.0, 0.98, 2000)
    assert verdict(claim(better(margin=0.05)), cells) == "not reproduced"
    assert verdict(claim(better(margin=0.0)), cells) == "reproduced"


def test_an_improvement_must_be_larger_than_its_margin(tmp_path):
    # 0.035 with a margin of 0.05: better than nothing for certain, and not shown to be more than the margin.
    found = check_claim("c", claim(better(margin=0.05)), two_recipes(tmp_path, 0.98, 0.945, 400))
    assert found["interval"][0] > 0
    assert found["verdict"] == "undecided"
    assert "the interval holds the margin" in found["models"]["m"]["conditions"][0]["reason"]
    shown = check_claim("c", claim(better(margin=0.05)), two_recipes(tmp_path / "more", 0.98, 0.89, 400))
    assert shown["verdict"] == "reproduced"
    assert shown["p_value"] <= shown["p_verdict"] < 0.05


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.2, 0.3])
def test_the_p_value_of_a_verdict_says_what_its_interval_says(tmp_path, margin):
    cells = two_recipes(tmp_path, 0.8, 0.6, 300)
    for kind in ("better", "not_worse", "equal"):
        if kind != "better" and not margin:
            continue
        found = check_claim("c", claim({kind: against("separation", margin)}), cells)
        assert (found["p_verdict"] is None) == (found["verdict"] == "undecided")
        assert found["p_verdict"] is None or found["p_verdict"] < 0.05 * (2 if kind == "equal" else 1)


def page(*p_values, verdict="reproduced"):
    return [{"id": str(i), "verdict": verdict, "confidence": 0.95, "p_verdict": p} for i, p in enumerate(p_values)]


def test_claims_of_a_page_are_corrected_by_holms_procedure():
    from scipy.stats import false_discovery_control  # another procedure, which rejects at least as much

    p_values = [0.01, 0.04, None, 0.03, 0.005]
    found = corrected([*page(*p_values[:2]), *page(None, verdict="undecided"), *page(*p_values[3:])])
    # By hand, of five claims: 0.005 * 5, 0.01 * 4, 0.03 * 3, and 0.04 * 2 not below the one before.
    assert [claim["p_corrected"] for claim in found] == pytest.approx([0.04, 0.09, None, 0.09, 0.025])
    assert [claim["verdict"] for claim in found] == ["reproduced", *["undecided"] * 3, "reproduced"]
    assert found[1]["uncorrected_verdict"] == "reproduced"
    assert not any("uncorrected_verdict" in found[index] for index in (0, 2))
    theirs = false_discovery_control([1.0 if p is None else p for p in p_values])
    ours = [1.0 if claim["p_corrected"] is None else claim["p_corrected"] for claim in found]
    assert all(other <= own for other, own in zip(theirs, ours, strict=True))
    assert corrected(page(0.049))[0]["verdict"] == "reproduced"
    assert corrected(page(0.2, 0.8))[1]["p_corrected"] == pytest.approx(0.8)


def test_a_verdict_of_one_among_many_conditions_pays_for_their_number(tmp_path):
    cells = two_recipes(tmp_path, 0.9, 0.3, 400, utility=(0.83, 0.9))
    bad = {"not_worse": against("utility", 0.02)}
    alone = check_claim("c", claim(bad), cells)
    among = check_claim("c", claim(better(), bad, not_worse(0.5)), cells)
    assert (alone["verdict"], among["verdict"]) == ("contradicted", "not reproduced")
    assert among["p_verdict"] == pytest.approx(3 * alone["p_verdict"])
    near = [not_worse(margin) for margin in (0.13, 0.3)]  # the nearer margin is the harder one
    every, *each = (check_claim("c", claim(*of), cells) for of in ((better(), *near), (better(),), near[:1], near[1:]))
    assert every["verdict"] == "reproduced"
    assert every["p_verdict"] == max(one["p_verdict"] for one in each) > 2 * min(one["p_verdict"] for one in each)


def test_equality_and_margins_are_as_sure_as_their_nearer_bound(tmp_path):
    cells = two_recipes(tmp_path, 0.8, 0.62, 400)
    low, high = check_claim("c", claim(better()), cells)["interval"]
    inside = {"better": against("separation", low - 0.005), "equal": against("separation", high + 0.005)}
    for kind, terms in inside.items():
        found = check_claim("c", claim({kind: terms}), cells)
        assert found["verdict"] == "reproduced"
        assert 0.02 < found["p_verdict"] < 0.05


def test_models_that_share_records_do_not_count_twice(tmp_path):
    one = two_recipes(tmp_path, 0.6, 0.55, model="a")
    same = [{**cell, "model": name} for name in ("b", "c") for cell in two_recipes(tmp_path, 0.6, 0.55, model=name)]
    alone, many = (check_claim("c", claim(better(margin=0.0)), cells) for cells in (one, one + same))
    assert many["n"] == alone["n"]


def test_lower_can_be_better(tmp_path):
    cells = two_recipes(tmp_path, 0.8, 0.5)
    found = check_claim("c", claim(better("probe_in_data_rate")), cells)
    assert found["verdict"] == "reproduced"
    assert found["effect"] == pytest.approx(-0.3)


def test_seeds_that_disagree_leave_it_undecided(tmp_path):
    high = two_recipes(tmp_path, 1.0, 0.5, seeds=(0,))
    low = two_recipes(tmp_path, 0.6, 0.65, seeds=(1,))
    found = check_claim("c", claim(better()), high + low)
    assert found["verdict"] == "undecided"
    assert "not at every seed" in found["models"]["m"]["conditions"][0]["reason"]


def not_worse(margin=0.05):
    return {"not_worse": against("utility", margin)}


def equal(margin=0.05):
    return {"equal": against("utility", margin)}


@pytest.mark.parametrize(
    ("utility", "n", "not_worse_is", "equal_is"),
    [
        ((0.95, 0.95), 400, "reproduced", "reproduced"),
        ((0.99, 0.8), 400, "reproduced", "contradicted"),
        ((0.6, 0.9), 400, "contradicted", "contradicted"),
        ((0.6, 0.6), 30, "undecided", "undecided"),
    ],
)
def test_equal_utility(tmp_path, utility, n, not_worse_is, equal_is):
    cells = two_recipes(tmp_path, 0.9, 0.3, n, utility=utility)
    assert verdict(claim(not_worse()), cells) == not_worse_is
    assert verdict(claim(equal()), cells) == equal_is


def test_the_worst_condition_decides_and_only_the_headline_contradicts(tmp_path):
    costly = two_recipes(tmp_path, 0.9, 0.3, 400, utility=(0.6, 0.9))
    found = check_claim("c", claim(better(), not_worse()), costly)
    assert found["verdict"] == "not reproduced"
    assert verdict(claim(not_worse(), better()), costly) == "contradicted"
    assert found["effect"] == pytest.approx(0.6, abs=0.1)
    assert [entry["outcome"] for entry in found["models"]["m"]["conditions"]] == ["holds", "opposite"]


def test_an_optional_condition_counts_where_it_is_measured(tmp_path):
    cells = study_cells(tmp_path)
    right = {"vanilla": draws(0.95, 100, "v"), "aside": draws(0.5, 100, "a")}
    cells += [tasks_cell(tmp_path, "miniature", recipe, seed, right[recipe]) for recipe in right for seed in (0, 1)]
    found = check_claim("aside_separates", read_yaml(SEPARATES), cells)
    assert found["verdict"] == "not reproduced"
    assert found["not_measured"] == []


def bound(kind, value, metric="separation", recipe="aside"):
    return {kind: {"benchmark": "sep", "metric": metric, "recipe": recipe, "value": value}}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("at_least", 0.8, "reproduced"),
        ("at_least", 0.9, "undecided"),
        ("at_least", 0.97, "not reproduced"),
        ("at_most", 0.97, "reproduced"),
        ("at_most", 0.9, "undecided"),
        ("at_most", 0.8, "not reproduced"),
    ],
)
def test_thresholds(tmp_path, kind, value, expected):
    found = check_claim("c", claim(bound(kind, value)), two_recipes(tmp_path, 0.9, 0.3))
    assert found["verdict"] == expected
    assert found["effect"] == pytest.approx(0.9)
    assert (found["p_value"] < 0.025) == (expected == "reproduced")


def test_a_drop_from_high_to_low_is_two_thresholds(tmp_path):
    cells = two_recipes(tmp_path, 0.99, 0.02)
    rate = "probe_in_data_rate"
    both = [bound("at_least", 0.9, rate, "vanilla"), bound("at_most", 0.1, rate, "aside")]
    assert verdict(claim(*both), cells) == "reproduced"


def test_metrics_without_rows_can_meet_thresholds_but_not_be_compared(tmp_path):
    metric = {"value": 0.98, "stderr": 0.005, "interval": [0.97, 0.99], "higher_is_better": True}
    cells = [write_scores(tmp_path, "m", recipe, 0, "detector", {"auc": metric}) for recipe in ("aside", "vanilla")]
    auc = {"benchmark": "detector", "metric": "auc", "recipe": "aside", "value": 0.95}
    assert verdict(claim({"at_least": auc}), cells) == "reproduced"
    with pytest.raises(ResultsError, match="no value of auc per record"):
        check_claim("c", claim(better("auc", benchmark="detector")), cells)


@pytest.mark.parametrize("stderr", [None, 0.0, 0.2, 1e-6])
@pytest.mark.parametrize(("low", "expected"), [(0.951, "reproduced"), (0.949, "undecided")])
def test_without_rows_the_p_value_is_that_of_the_interval_in_the_file(tmp_path, stderr, low, expected):
    # A perfect detector has an error of 0 and an interval with room.
    metric = {"value": 1.0, "stderr": stderr, "interval": [low, 1.0], "higher_is_better": True}
    cells = [write_scores(tmp_path, "m", "aside", 0, "detector", {"auc": metric})]
    auc = {"benchmark": "detector", "metric": "auc", "recipe": "aside", "value": 0.95}
    found = check_claim("c", claim({"at_least": auc}), cells)
    assert found["verdict"] == expected
    if expected == "reproduced":
        assert 0.04 < found["p_verdict"] < 0.05
        [alone, *_] = corrected([found, *page(None, verdict="undecided")])
        assert alone["verdict"] == "undecided"
    else:
        assert check_claim("c", claim({"at_least": auc}, confidence=0.9), cells)["verdict"] == "reproduced"


def test_means_that_are_no_rates(tmp_path):
    cells = []
    for recipe, shift in (("aside", 0.01), ("vanilla", 0.4)):
        rows = [{"id": str(i), "kl": shift + (i % 7) / 1000} for i in range(60)]
        value = sum(row["kl"] for row in rows) / 60
        metric = {"value": value, "stderr": 0.001, "interval": [0, 1], "n": 60, "higher_is_better": False}
        cells.append(write_scores(tmp_path, "m", recipe, 0, "refusal", {"kl": metric}, rows))
    kl = {"benchmark": "refusal", "metric": "kl", "recipe": "aside", "value": 0.05}
    found = check_claim("c", claim(better("kl", benchmark="refusal"), {"at_most": kl}), cells)
    assert found["verdict"] == "reproduced"
    assert found["effect"] == pytest.approx(-0.39)


def test_an_undefined_metric_leaves_it_undecided(tmp_path):
    found = check_claim("c", claim(better()), two_recipes(tmp_path, 0.9, 0.3, 20, utility=(0.0, 1.0)))
    assert (found["verdict"], found["effect"], found["interval"], found["p_value"]) == ("undecided", None, None, None)


def test_every_model_must_bear_it_out(tmp_path):
    good = two_recipes(tmp_path, 0.9, 0.3, model="a")
    bad = two_recipes(tmp_path, 0.3, 0.9, model="b")
    found = check_claim("c", claim(better()), good + bad)
    assert found["verdict"] == "contradicted"
    assert {model: content["verdict"] for model, content in found["models"].items()} == {
        "a": "reproduced",
        "b": "contradicted",
    }
    assert found["effect"] == pytest.approx(0, abs=0.05)
    assert found["n"] == 200  # the same records
    found = check_claim("c", claim(bound("at_least", 0.6)), good + bad)
    assert found["verdict"] == "not reproduced"
    assert found["interval"][0] < 0.6 < found["interval"][1]


def test_what_is_missing_is_named(tmp_path):
    cells = study_cells(tmp_path, n=20)
    with pytest.raises(ResultsError, match='no result of "sep" for miniature, vanilla'):
        check_claim("c", read_yaml(SEPARATES), [c for c in cells if c["recipe"] != "vanilla"])
    with pytest.raises(ResultsError, match='"aside" is empty'):
        check_claim("c", read_yaml(SEPARATES), [])
    other = [sep_cell(tmp_path / "other", "miniature", "vanilla", seed, [0] * 21, [1] * 21) for seed in (0, 1)]
    with pytest.raises(StatisticsError, match=r"different records.*sep-0020"):
        check_claim("c", read_yaml(SEPARATES), [c for c in cells if c["recipe"] != "vanilla"] + other)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (claim({**better(), **not_worse()}), "exactly one of better, not_worse"),
        (claim({"if_measured": True}), "exactly one of better, not_worse"),
        (claim(equal(margin=0.0)), "equal needs a margin above 0"),
        (claim({**better(), "if_measured": True}), "headline"),
        (claim(), "at least 1"),
        (claim({"beter": better()["better"]}), r'unknown key "conditions.0.beter".*"better"'),
    ],
)
def test_a_claim_that_says_too_much_or_too_little_is_refused(spec, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(Claim, spec, "test")


@pytest.mark.parametrize("path", sorted((CONFIG / "claims").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configured_claims_are_valid(path):
    found = validated(Claim, read_yaml(path), str(path)).of_study(("attack",))
    assert set(found.required_benchmarks()) <= set(found.benchmarks())
    assert found.recipes()
