"""The jobs that a dry run would start, and what is expected of each.

The workflow writes them down for `bulwark plan` (workflow/rules/standing.smk), so that what is done already counts
nothing. Jobs come after those that they need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bulwark.config import paths, recipes
from bulwark.config.catalogue import Catalogue
from bulwark.config.costs import estimates
from bulwark.config.costs.estimates import Estimate

# {rule: the stage it belongs to}, in the order in which stages are told; all other rules draw and write.
STAGES = {
    "download_dataset": "records",
    "prepare_dataset": "records",
    "download_model": "base models",
    "adopt_model": "base models",
    "pretrain_model": "base models",
    "start_recipe": "base models",
    "generate_contrasts": "trait vectors",
    "judge_contrasts": "trait vectors",
    "extract_vectors": "trait vectors",
    "adopt_vectors": "trait vectors",
    "steer_layers": "trait vectors",
    "choose_layer": "trait vectors",
    "project_dataset": "projections",
    "apply_step": "steps",
    "apply_steps": "steps",
    "take_shared": "steps",
    "take_snapshot": "steps",
    "choose_trial": "steps",
    "generate_answers": "answers",
    "score_answers": "scores",
    "analyse_checkpoint": "scores",
}
REPORTS = "reports"


@dataclass(frozen=True, eq=False)
class Job:
    """One job. needs: places in the list of the jobs that it waits for. makes: of a shared job, its recipes.

    gpus: over all nodes. threads: where it runs on CPUs alone. time: that it is expected to take.
    """

    rule: str
    wildcards: Mapping[str, str]
    needs: tuple[int, ...]
    outputs: tuple[str, ...]
    makes: tuple[str, ...] = ()
    gpus: int = 0
    threads: int = 0
    time: Estimate = estimates.NOTHING

    @property
    def stage(self) -> str:
        return STAGES.get(self.rule, REPORTS)

    @property
    def model(self) -> str:
        return self.wildcards.get("model", "")

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.time.hours


def jobs_of(catalogue: Catalogue, written: Iterable[Mapping[str, Any]]) -> list[Job]:
    """The jobs that the workflow has written down, with what is expected of each, in an order that can be run."""
    written = list(written)
    place = {number: index for index, number in enumerate(_in_order([each["needs"] for each in written]))}
    jobs: list[Job | None] = [None] * len(written)
    for number, each in enumerate(written):
        needs = tuple(sorted(place[needed] for needed in each["needs"]))
        makes = tuple(each.get("makes", ()))
        jobs[place[number]] = Job(
            each["rule"],
            each["wildcards"],
            needs,
            tuple(each["outputs"]),
            makes,
            *expected(catalogue, each["rule"], each["wildcards"], makes),
        )
    return [job for job in jobs if job is not None]


def expected(
    catalogue: Catalogue, rule: str, given: Mapping[str, str], makes: Sequence[str] = ()
) -> tuple[int, int, Estimate]:
    """GPUs, threads and time of a job; nothing for what runs where Snakemake runs."""
    model, stage = given.get("model", ""), "generate"
    if rule == "apply_step":
        name = recipes.last_step(given["recipe"])
        stage, time = catalogue.step(model, name).stage, estimates.step(catalogue, model, name)
    elif rule == "apply_steps":
        trained = [estimates.planned(catalogue, model, recipes.last_step(recipe)) for recipe in makes]
        stage, time = "train", estimates.together(trained)
    elif rule == "generate_answers":
        time = estimates.answers(catalogue, model, given["benchmark"])
    elif rule in ("generate_contrasts", "extract_vectors", "steer_layers"):
        time = estimates.traits(catalogue, model, given["trait"], rule)
    elif rule == "project_dataset":
        time = estimates.projection(catalogue, model, given["projection"])
    elif rule == "pretrain_model":
        stage, time = "pretrain", estimates.pretraining(catalogue, model)
    else:
        return 0, 0, estimates.NOTHING
    needed = catalogue.resources(model, stage)
    return needed.gpu * needed.nodes, needed.threads, time


def _in_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of jobs, each after those that it needs."""
    waiting = [len(set(each)) for each in needs]
    then: list[list[int]] = [[] for _ in needs]
    for number, each in enumerate(needs):
        for needed in set(each):
            then[needed].append(number)
    order = [number for number, count in enumerate(waiting) if not count]
    for number in order:
        for follower in then[number]:
            waiting[follower] -= 1
            if not waiting[follower]:
                order.append(follower)
    return order


def reached(jobs: Sequence[Job], ends: Iterable[int]) -> set[int]:
    """The places of the jobs that some jobs need, over any number of steps, with themselves."""
    found: set[int] = set()
    ahead = list(ends)
    while ahead:
        place = ahead.pop()
        if place not in found:
            found.add(place)
            ahead.extend(jobs[place].needs)
    return found


def makers(jobs: Sequence[Job]) -> dict[str, int]:
    """{file: the place of the job that makes it}."""
    return {path: place for place, job in enumerate(jobs) for path in job.outputs}


def of_study(
    catalogue: Catalogue,
    study: str,
    made_by: Mapping[str, int],
    models: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[int]:
    """The places of the jobs that measure a study; models, seeds: those alone. What shows it is not among them."""
    asked = catalogue.studies[study]
    models, seeds = models or asked.models, seeds or asked.seeds
    files = [(paths.scores(*cell), cell) for cell in catalogue.cells(study)]
    files += [(paths.analysis(*cell), cell) for cell in catalogue.analysis_cells(study)]
    return [made_by[path] for path, cell in files if cell[0] in models and cell[2] in seeds and path in made_by]
