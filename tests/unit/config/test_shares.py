"""Which trainings share a job, what it is told of them, and that nothing of it is there unless a model asks for it."""

from __future__ import annotations

import re

import pytest
from test_plan import loaded

from bulwark.config import plan, recipes
from bulwark.config.costs import estimates
from bulwark.config.sharing import shares
from bulwark.errors import ConfigurationError

MODEL = "llama3-8b-instruct"
TAR = "random_map+tar"


def sharing(hours: float, *texts: str):
    return loaded(*texts, f"name: sharing\nmodels: {{{MODEL}: {{resources: {{shared_hours: {hours}}}}}}}")


@pytest.fixture(scope="module")
def papers():
    return sharing(4.0)


def hours_of(catalogue, recipe: str) -> float:
    return estimates.planned(catalogue, MODEL, recipes.last_step(recipe)).hours


def test_by_default_every_step_is_a_job_of_its_own():
    catalogue = loaded()
    assert not any(shares.shares(catalogue, model) for model in catalogue.models)
    assert re.match(shares.shared_recipes(catalogue), f"{MODEL}/{TAR}+relearn.0/") is None


def test_jobs_are_filled_in_the_order_of_the_studies(papers):
    found = shares.shares(papers, MODEL)
    jobs = [job for of_parent in found.values() for job in of_parent]
    assert all(len(job) > 1 and sum(hours_of(papers, recipe) for recipe in job) <= 4 + 1e-9 for job in jobs)
    assert all(recipes.parent_of(recipe) == parent for parent, jobs in found.items() for job in jobs for recipe in job)
    together = [recipe for job in found[TAR] for recipe in job]
    assert len(set(together)) == len(together)
    trials = [f"{TAR}+relearn.{number}" for number in range(16)]
    assert [recipe for recipe in together if recipe in trials] == trials
    for one, other in zip(found[TAR], found[TAR][1:], strict=False):
        assert sum(hours_of(papers, recipe) for recipe in [*one, other[0]]) > 4, "there was room for one more"
    assert re.match(shares.shared_recipes(papers), f"{MODEL}/{TAR}+relearn.3/")
    assert re.match(shares.shared_recipes(papers), f"{MODEL}/{TAR}+relearn.300/") is None
    assert re.match(shares.shared_recipes(papers), f"llama3.1-8b/{TAR}+relearn.3/") is None


def test_what_takes_longer_or_reads_more_has_a_job_of_its_own(papers):
    known = {recipe for jobs in shares.shares(papers, MODEL).values() for job in jobs for recipe in job}
    assert hours_of(papers, TAR) > 4
    alone = {TAR, f"{TAR}+interpolate", f"{TAR}+quantise", f"{TAR}+reinitialise"}
    assert not alone & known
    few = sharing(hours_of(papers, f"{TAR}+relearn.0") * 1.5)
    assert f"{TAR}+relearn.0" not in {r for jobs in shares.shares(few, MODEL).values() for job in jobs for r in job}
    steering = loaded(
        "miniature.yaml", "name: sharing\nmodels: {miniature: {resources: {shared_hours: 9}}}"
    )  # with snapshots, vectors and projections
    known = {recipe for jobs in shares.shares(steering, "miniature").values() for job in jobs for recipe in job}
    assert {"sft", "vanilla", "aside", "vanilla+aside"} & known == {"sft", "vanilla", "aside"}
    assert not {"steer", "pis", "idp", "sft@19", "heretic", "vanilla+heretic", "base"} & known


def test_a_part_is_told_what_a_job_of_its_own_is_told(papers):
    recipe = f"{TAR}+relearn.3"
    number = next(n for n, job in enumerate(shares.shares(papers, MODEL)[TAR]) if recipe in job)
    assert shares.record(papers, MODEL, recipe, "0").endswith(f"/{MODEL}/{TAR}/seed0/{number}.json")
    [part] = shares.parts(papers, MODEL, "0", [recipe])
    work = plan.step(papers, MODEL, recipe)
    assert (part["kind"], part["settings"], part["code"]) == (work.module, work.settings, work.code)
    assert part["inputs"] == plan.step_inputs(papers, MODEL, recipe, "0")
    assert part["identity"]["trial"] == plan.trial(papers, MODEL, recipe)
    assert part["asked"].split(" ")[1:3] == [f"apply_step:{MODEL}/{recipe}/0", "gpus=8"]
    read = shares.inputs(papers, MODEL, TAR, "0", str(number))
    assert read["parent"] == part["inputs"]["parent"]
    assert {path for name, path in part["inputs"].items() if name != "parent"} <= set(read["records"])


def test_a_job_is_given_the_time_of_what_it_makes(papers):
    job = shares.shares(papers, MODEL)[TAR][0]
    expected = sum(hours_of(papers, recipe) for recipe in job)
    assert shares.time(papers, MODEL, job).hours == pytest.approx(expected)
    assert shares.resources(papers, MODEL, job)["runtime"] == pytest.approx(90 * expected, abs=1)
    assert shares.resources(papers, MODEL, job[:1])["runtime"] == plan.step(papers, MODEL, job[0]).resources["runtime"]


def test_a_shared_job_that_is_not_there_is_an_error(papers):
    with pytest.raises(ConfigurationError, match=r"apply_steps/llama3-8b-instruct/aside/…/0\.json: 0 jobs share"):
        shares.members(papers, MODEL, "aside", "0")
    with pytest.raises(ConfigurationError, match="shared_hours"):
        sharing(0)
