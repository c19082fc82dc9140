"""How claims are shown: units, signs and sentences that a reader can compare with the tables."""

import json
from pathlib import Path

import pytest
from score_samples import draws, sep_cell, study_cells, write_scores

from bulwark.config import loading, plan_reports
from bulwark.reporting.claims import check_claim
from bulwark.reporting.numbers import quantity
from bulwark.reporting.settings import Claim, Column
from bulwark.reporting.tables import make_table
from bulwark.reporting.verdicts import conditions, headline, line, not_measured, write_claims
from bulwark.settings import ConfigurationError, merged, read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
COLUMNS = {
    "sep.separation": {"benchmark": "sep", "metric": "separation", "label": "SEP score"},
    "sep.utility": {"benchmark": "sep", "metric": "utility", "label": "SEP utility"},
    "traits.expression": {"benchmark": "traits", "metric": "expression", "label": "trait", "out_of": 9},
}


def trait_cells(folder, rates):
    """Trait expression per recipe, exactly this mean: lower is better."""
    cells = []
    for recipe, rate in rates.items():
        values = draws(rate, 200, recipe)
        rows = [{"id": str(index), "expression": float(value)} for index, value in enumerate(values)]
        metric = {"value": rate, "stderr": 0.02, "interval": [0, 1], "n": 200, "higher_is_better": False}
        cells.append(write_scores(folder, "m", recipe, 0, "traits", {"expression": metric}, rows))
    return cells


def taught(folder, **more):
    """The claim that training teaches a trait, whose condition is that the clean data are better."""
    terms = {"benchmark": "traits", "metric": "expression", "recipe": "clean", "than": "sft", "margin": 0.1}
    spec = {"statement": "s", "source": "p", "study": "x", "conditions": [{"better": terms}], **more}
    return check_claim("c", spec, trait_cells(folder, {"clean": 0.05, "sft": 0.25}))


@pytest.mark.parametrize(("ise", "outcome"), [(0.5, "reproduced"), (0.9, "not reproduced")])
def test_with_aside_only_means_that_ise_is_not_separable(tmp_path, ise, outcome):
    """ISE at 0.9 is less than ASIDE's 1.0, and separable all the same."""
    cells = []
    for recipe, value in {"ise": ise, "aside": 1.0}.items():
        rows = [{"id": str(index), "matched_0": value + (1 - value) * 0.2 * (index % 2 - 0.5)} for index in range(100)]
        metric = {"value": value, "stderr": 0.01, "interval": [0, 1], "n": 100, "higher_is_better": True}
        cells.append(write_scores(tmp_path, "m", recipe, 0, "separability", {"matched_0": metric}, rows))
    name = "only_aside_is_separable_from_the_start"
    claim = check_claim(name, read_yaml(CONFIG / f"claims/{name}.yaml"), cells)
    assert claim["verdict"] == outcome


def test_the_effect_has_the_sign_of_the_statement_and_the_unit_of_the_table(tmp_path):
    claim = taught(tmp_path, about="sft", labels={"sft": "data with the trait", "clean": "clean data"})
    assert claim["effect"] == pytest.approx(-0.2), "claims.json stays in the unit of the scores: recipe minus than"
    shown = headline(claim, COLUMNS)
    assert (shown.outcome, shown.quantity) == ("reproduced", "trait")
    assert (shown.effect, shown.of) == ("+1.80 of 9", "data with the trait − clean data")
    low, high = (float(bound) for bound in shown.interval.strip("[]").split(", "))
    assert 0 < low < 1.8 < high
    assert shown.p == "< 0.0001"
    assert dict(shown.values) == {"clean data": "0.45 of 9", "data with the trait": "2.25 of 9"}


def test_without_a_word_on_it_a_claim_is_about_its_recipe(tmp_path):
    shown = headline(taught(tmp_path), COLUMNS)
    assert (shown.effect, shown.of) == ("−1.80 of 9", "clean − sft")


def test_a_claim_is_about_one_of_the_recipes_that_it_compares():
    spec = read_yaml(CONFIG / "claims" / "trait_is_learned.yaml")
    assert validated(Claim, spec, "here").about == "sft"
    with pytest.raises(ConfigurationError, match='about "steer", which its headline does not compare: sft_clean, sft'):
        validated(Claim, {**spec, "about": "steer"}, "here")


def test_effects_agree_with_the_numbers_in_the_table(tmp_path):
    cells = study_cells(tmp_path)
    claim = check_claim("aside_separates", read_yaml(CONFIG / "claims/aside_separates.yaml"), cells)
    paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    frame = make_table(read_yaml(CONFIG / "tables/aside_sep.yaml"), cells, None, *paths).set_index("recipe")
    value = frame["sep.separation_percent.value"]
    shown = headline(claim, COLUMNS)
    assert shown.effect == f"+{value['aside'] - value['vanilla']:.1f} points"
    assert dict(shown.values) == {"ASIDE": f"{value['aside']:.1f} %", "vanilla": f"{value['vanilla']:.1f} %"}
    [(model, [_, utility])] = conditions(claim, COLUMNS)
    assert model == "miniature"
    assert utility.sentence == "SEP utility of ASIDE: at most 5 points worse than that of vanilla"
    assert utility.effect.startswith("−")
    assert [seed for seed, _ in utility.by_seed] == ["0", "1"]
    assert not_measured(claim, COLUMNS) == ["accuracy of ASIDE: at most 0.05 worse than that of vanilla"]


def test_conditions_are_sentences(tmp_path):
    terms = {"benchmark": "traits", "metric": "expression", "recipe": "clean"}
    spec = {
        "statement": "s", "source": "p", "study": "x", "labels": {"clean": "clean data"},
        "conditions": [
            {"better": {**terms, "than": "sft"}},
            {"equal": {**terms, "than": "sft", "margin": 0.5}},
            {"at_most": {**terms, "value": 0.1}},
            {"at_least": {**terms, "value": 0.01}},
        ],
    }  # fmt: skip
    claim = check_claim("c", spec, trait_cells(tmp_path, {"clean": 0.05, "sft": 0.25}))
    [(_, shown)] = conditions(claim, COLUMNS)
    assert [entry.sentence for entry in shown] == [
        "trait of clean data: lower than that of sft",
        "trait of clean data: within 4.5 of 9 of that of sft",
        "trait of clean data: at most 0.90 of 9",
        "trait of clean data: at least 0.09 of 9",
    ]
    assert [entry.effect for entry in shown] == ["−1.80 of 9", "−1.80 of 9", "0.45 of 9", "0.45 of 9"]
    assert not any("0.05" in entry.reason or "margin 0" in entry.reason for entry in shown), "no number of another unit"


def test_over_several_models_the_values_are_means(tmp_path):
    rates = {"a": (0.9, 0.3), "b": (0.8, 0.2)}
    cells = [
        sep_cell(tmp_path, model, recipe, 0, draws(1 - rate, 100, f"{model}{recipe}"), [1] * 100)
        for model, pair in rates.items()
        for recipe, rate in zip(("aside", "vanilla"), pair, strict=True)
    ]
    claim = check_claim("c", {**read_yaml(CONFIG / "claims/aside_separates.yaml"), "study": "x"}, cells)
    shown = headline(claim, COLUMNS)
    assert dict(shown.values) == {"ASIDE": "85.0 %", "vanilla": "25.0 %"}
    assert (shown.effect, shown.by_seed) == ("+60.0 points", [])


def test_the_files(tmp_path):
    claim = taught(tmp_path, about="sft", statement="It teaches | the trait")
    write_claims([claim], {"c": COLUMNS}, tmp_path / "claims.json", tmp_path / "claims.md")
    assert json.loads((tmp_path / "claims.json").read_text()) == [claim]
    text = (tmp_path / "claims.md").read_text()
    assert "| **reproduced** | It teaches &#124; the trait | trait of sft − clean | +1.80 of 9 | 95% [+1." in text
    assert "trait of sft: higher than that of clean by more than 0.9 of 9: **holds**" in text


def test_a_claim_on_one_line(tmp_path):
    claim = taught(tmp_path, about="sft", statement="It teaches")
    assert line(claim, COLUMNS).startswith("REPRODUCED: It teaches (trait: +1.80 of 9, 95% interval [+1.")
    del claim["models"]
    assert line(claim, COLUMNS) == "REPRODUCED: It teaches", "what other code wrote is shown as far as it goes"


def test_an_undefined_metric_is_shown_as_a_dash(tmp_path):
    spec = {**read_yaml(CONFIG / "claims/aside_separates.yaml"), "study": "x"}
    cells = [sep_cell(tmp_path, "m", recipe, 0, [0] * 20, [0] * 20) for recipe in ("aside", "vanilla")]
    shown = headline(check_claim("c", spec, cells), COLUMNS)
    assert (shown.effect, shown.interval, shown.p, shown.outcome) == ("–", "–", "–", "undecided")


@pytest.mark.parametrize("overlays", [(), ("miniature.yaml",), ("miniature.yaml", "demo.yaml")], ids=str)
def test_every_metric_of_every_claim_has_a_column_in_a_table(overlays):
    """Otherwise a page would show it under another name and in another unit than the tables."""
    config = read_yaml(CONFIG / "config.yaml")
    for overlay in overlays:
        config = merged(config, read_yaml(CONFIG / overlay))
    catalogue = loading.load(config, CONFIG)
    for name, columns in plan_reports.columns(catalogue).items():
        assert {f"{benchmark}.{metric}" for benchmark, metric in catalogue.claims[name].metrics()} == set(columns)
        for column in columns.values():
            assert quantity(validated(Column, column, name), "").label
    assert plan_reports.columns(catalogue)["aside_separates"]["sep.separation"]["label"] == "SEP score"


@pytest.mark.parametrize("path", sorted((CONFIG / "claims").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configured_claims_name_their_recipes(path):
    """Those that it compares, before whatever attacks."""
    claim = validated(Claim, read_yaml(path), str(path))
    compared = {name for part in claim.conditions for name in (part.terms.recipe, getattr(part.terms, "than", None))}
    assert set(claim.labels) == compared - {None}


def test_a_verdict_that_the_correction_has_taken_back_says_so(tmp_path):
    claim = {**taught(tmp_path), "verdict": "undecided", "uncorrected_verdict": "reproduced", "p_corrected": 0.07}
    assert headline(claim, {}).reason == "by itself reproduced, but corrected for the number of claims p = 0.070"
    write_claims([claim], {}, tmp_path / "claims.json", tmp_path / "claims.md")
    assert f"## {claim['id']}: undecided (by itself reproduced, but" in (tmp_path / "claims.md").read_text()
