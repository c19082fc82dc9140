"""Trainings of one checkpoint that share a job: which these are, and what the job reads, gets and needs.

A model says under `resources` how long such a job may be expected to take, `shared_hours`. Its members are what studies
list, in their order: trainings that read nothing but the checkpoint and records. So a job that is shared does not
depend on what else is made of the same checkpoint. What a run does not need of a share is not made by it: the workflow
says which members are wanted (workflow/rules/shared.smk).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from bulwark import steps
from bulwark.config import paths, plan, recipes
from bulwark.config.catalogue import Catalogue
from bulwark.config.costs import estimates
from bulwark.config.costs.estimates import Estimate
from bulwark.config.standing.asked import asked
from bulwark.config.standing.dry_run import SHARES_OPENING
from bulwark.errors import ConfigurationError
from bulwark.training.finetuning import FineTuningSettings

RULE = "apply_step"  # whatever job makes them, these checkpoints are asked for as this rule's


@cache
def shares(catalogue: Catalogue, model: str) -> dict[str, list[list[str]]]:
    """The recipes that share a job on a model, by their parent; a job's place in the list is its number."""
    limit = catalogue.model(model).resources.shared_hours
    if limit is None:
        return {}
    siblings: dict[str, dict[str, float]] = {}
    for study in catalogue.studies.values():
        every = study.every_recipe if model in study.models else ()
        for recipe in (each for listed in every for each in _trained(catalogue, model, listed)):
            hours = _hours(catalogue, model, recipe)
            if hours is not None and hours <= limit:
                siblings.setdefault(recipes.parent_of(recipe), {})[recipe] = hours
    shared = {parent: _filled(hours, limit) for parent, hours in siblings.items()}
    return {parent: jobs for parent, jobs in shared.items() if jobs}


def _trained(catalogue: Catalogue, model: str, recipe: str) -> list[str]:
    """The trials that a choice on the way to a recipe is made among, and the recipe."""
    steps_of = recipes.steps_of(recipe)
    found = []
    for number, step in enumerate(steps_of):
        best = recipes.snapshot_of(step)[0]
        for trial in catalogue.trials_to_choose(model, best) if recipes.best_of(best) else ():
            found.append("+".join([*steps_of[:number], trial]))
    return [*found, recipe]


def _filled(hours: dict[str, float], limit: float) -> list[list[str]]:
    """Recipes, one after another, in jobs of at most `limit` hours; without what would be alone in its job."""
    jobs: list[list[str]] = []
    used = limit
    for recipe, needed in hours.items():
        if used + needed > limit + 1e-9:
            jobs.append([])
            used = 0.0
        jobs[-1].append(recipe)
        used += needed
    return [job for job in jobs if len(job) > 1]


def _hours(catalogue: Catalogue, model: str, recipe: str) -> float | None:
    """How long the training that a recipe ends with is expected to take; None if it cannot share a job."""
    if recipe == recipes.BASE or recipes.snapshot_of(recipes.last_step(recipe))[1] is not None:
        return None
    if recipes.best_of(recipes.last_step(recipe)):
        return None
    step = catalogue.step(model, recipes.last_step(recipe))
    trains = isinstance(step.settings, FineTuningSettings) and not hasattr(steps.module_of(step.module), "run")
    if not trains or step.stage != "train" or any(not path.startswith("data/") for path in step.inputs.values()):
        return None
    return estimates.planned(catalogue, model, recipes.last_step(recipe)).hours


@cache
def shared_recipes(catalogue: Catalogue) -> str:
    """A regular expression for "<model>/<recipe>/" of all checkpoints that a shared job makes; nothing matches none."""
    known = []
    for model in catalogue.models:
        shared = [re.escape(recipe) for jobs in shares(catalogue, model).values() for job in jobs for recipe in job]
        known += [f"{re.escape(model)}/(?:{'|'.join(shared)})/"] if shared else []
    return "|".join(known) or "(?!)"


def record(catalogue: Catalogue, model: str, recipe: str, seed: str) -> str:
    """What the job writes down that a recipe shares: which trainings came to their end."""
    parent = recipes.parent_of(recipe)
    numbers = [number for number, job in enumerate(shares(catalogue, model)[parent]) if recipe in job]
    return f"results/logs/apply_steps/{model}/{parent}/seed{seed}/{numbers[0]}.json"


def members(catalogue: Catalogue, model: str, parent: str, share: str) -> list[str]:
    """The recipes of a shared job. Raises ConfigurationError if there is no such job."""
    jobs = shares(catalogue, model).get(parent, [])
    if int(share) >= len(jobs):
        raise ConfigurationError(
            f"results/logs/apply_steps/{model}/{parent}/…/{share}.json: {len(jobs)} jobs share trainings of it. Ask "
            "for the checkpoints themselves; which of them share a job follows from the studies and from "
            f"{catalogue.where('models', model, 'resources')}.shared_hours."
        )
    return jobs[int(share)]


def inputs(catalogue: Catalogue, model: str, parent: str, seed: str, share: str) -> dict[str, Any]:
    """The parent's checkpoint, and the records that any member reads."""
    read = [plan.step_inputs(catalogue, model, recipe, seed) for recipe in members(catalogue, model, parent, share)]
    files = dict.fromkeys(path for each in read for name, path in each.items() if name != "parent")
    return {"parent": paths.checkpoint(model, parent, seed), "records": list(files)}


def time(catalogue: Catalogue, model: str, wanted: Sequence[str]) -> Estimate:
    """How long a job is expected to take for these trainings: the sum of theirs."""
    return estimates.together(estimates.planned(catalogue, model, recipes.last_step(recipe)) for recipe in wanted)


def resources(catalogue: Catalogue, model: str, wanted: Sequence[str]) -> dict[str, int]:
    """What a job asks for that does these trainings."""
    return plan.resources_of(catalogue, model, "train", time(catalogue, model, wanted))


def parts(catalogue: Catalogue, model: str, seed: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """What a shared job is told of each training that it is to do: what `apply_step` would be told of it."""
    return [_part(catalogue, model, recipe, seed) for recipe in wanted]


def _part(catalogue: Catalogue, model: str, recipe: str, seed: str) -> dict[str, Any]:
    work = plan.step(catalogue, model, recipe)
    decides = {"kind": work.module, "settings": plan.decisive_settings(catalogue, model, recipe), "code": work.code}
    trial = plan.trial(catalogue, model, recipe)
    return {
        "kind": work.module,
        "settings": work.settings,
        "code": work.code,
        "inputs": plan.step_inputs(catalogue, model, recipe, seed),
        "output": paths.checkpoint(model, recipe, seed),
        "identity": {"model": model, "recipe": recipe, "seed": int(seed), **({"trial": trial} if trial else {})},
        "log": f"results/logs/{RULE}/{model}/{recipe}/seed{seed}.log",
        "asked": asked(RULE, (model, recipe, seed), decides, work.resources["gpu"]),
    }


def told(jobs: Mapping[tuple[str, str, str, str], Sequence[str]]) -> str:
    """What is said of the shared jobs of a plan, {(model, parent, seed, share): recipes}; "" if there are none."""
    if not jobs:
        return ""
    trainings = sum(len(made) for made in jobs.values())
    lines = [
        f"{model}, {parent}, seed {seed}: {', '.join(recipe.removeprefix(f'{parent}+') for recipe in made)}"
        for (model, parent, seed, _), made in sorted(jobs.items())
    ]
    count = f"{len(jobs)} {'job starts and loads' if len(jobs) == 1 else 'jobs start and load'}"
    return "\n  ".join([SHARES_OPENING, *lines, f"{count} a model where {trainings} would"])
