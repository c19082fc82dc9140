"""What the report shows answers of: a bounded choice of what is measured anyway."""

from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan_reports

CONFIG = Path(__file__).parents[3] / "config"


@pytest.fixture(scope="module", params=[(), ("miniature.yaml",), ("miniature.yaml", "demo.yaml")], ids=len)
def catalogue(request):
    return loading.load(overlays.read([CONFIG / file for file in request.param], CONFIG), CONFIG)


@pytest.fixture(scope="module")
def page(catalogue):
    return plan_reports.page(catalogue)


def test_every_benchmark_of_every_study_has_examples_of_few_recipes(catalogue, page):
    for told in page.studies:
        study = catalogue.studies[told["name"]]
        groups = [(group["model"], group["benchmark"]) for group in told["examples"]]
        assert groups == [(model, benchmark) for model in study.models for benchmark in study.benchmarks]
        for group in told["examples"]:
            recipes = [cell["recipe"] for cell in group["cells"]]
            assert len(set(recipes)) == len(recipes) <= 8
            assert len(recipes) == min(8, group["of_recipes"]) or study.attacks
            assert set(recipes) <= set(study.every_recipe)
            assert group["of_recipes"] == len(study.every_recipe)


def test_they_are_of_what_is_measured_anyway_and_the_job_asks_for_their_files(catalogue, page):
    """The answers, the records and the rows; nothing per record."""
    measured = set(plan_reports.measured(catalogue).scores)
    groups = [group for study in page.studies for group in study["examples"]]
    cells = [cell for group in groups for cell in group["cells"]]
    assert {cell["scores"] for cell in cells} <= measured
    for cell in cells:
        place = cell["scores"].removeprefix("results/scores/").removesuffix(".json")
        assert cell["answers"] == f"results/answers/{place}.jsonl"
        assert {cell["answers"], f"results/scores/{place}.records.jsonl"} <= set(page.sources)
    assert {group["records"] for group in groups} <= set(page.sources)
    assert len(page.sources) == len(set(page.sources)) < 2.2 * len(measured) + 100


def test_of_a_study_with_attacks_each_defense_stands_beside_itself_under_attack():
    papers = loading.load(overlays.read([], CONFIG), CONFIG)
    [study] = [study for study in plan_reports.page(papers).studies if study["name"] == "tar"]
    cells = study["examples"][0]["cells"]
    attack = papers.studies["tar"].attacks[0]
    assert [(cell["recipe"], cell["attacked"]) for cell in cells[:4]] == [
        ("base", False), (attack, True), ("max_entropy", False), (f"max_entropy+{attack}", True),
    ]  # fmt: skip
    assert all(cell["seed"] == 0 for cell in cells)


def test_the_drawing_has_every_recipe_with_the_trials_of_a_step_as_one(page, catalogue):
    for study in page.studies:
        assert study["every_recipe"] == list(catalogue.studies[study["name"]].every_recipe)
        assert len(study["chains"]) <= len(study["every_recipe"])
        assert {recipe for recipe in study["chains"] if "*" not in recipe} <= set(study["every_recipe"])
