"""A searched attack on a checkpoint, start to end: directions, search, choice, export, and its record.

The attack measures a defense: what removing its refusals costs, and what is left of them. The weights it makes stay
on this machine; their manifest says what they are, and nothing in this project uploads anything.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import files
from bulwark.abliteration.settings import AttackSettings
from bulwark.errors import BulwarkError
from bulwark.models import manifests

if TYPE_CHECKING:
    from bulwark.abliteration.edit.hooks import Plan
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.jobs.job import Job
    from bulwark.models.answers import Answer
    from bulwark.models.open import LanguageModel

log = logging.getLogger(__name__)

JOURNAL, DIRECTIONS = "study.journal", "directions.safetensors"
NOTICE = {
    "abliterated": True,
    "release": "never",
    "notice": "Refusals were removed from these weights to measure a defense. Keep them on this machine.",
}


def attack(job: Job, settings: AttackSettings) -> dict[str, Any]:
    """Attack the parent of `job` and save the chosen trial as a model; returns what the manifest records.

    Raises BulwarkError if the parent refuses nothing, so that there is nothing to remove.
    """
    from bulwark.abliteration.edit.hooks import Edits
    from bulwark.abliteration.edit.targets import targets_of
    from bulwark.abliteration.measure.directions import estimate
    from bulwark.abliteration.measure.subject import read_prompts
    from bulwark.abliteration.search import outcome
    from bulwark.abliteration.search.objectives import scores
    from bulwark.abliteration.search.search import Search
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.models.anatomy import blocks_of
    from bulwark.models.open import open_model

    started = time.time()
    subject = open_model(job.parent, settings.dtype)
    prompts = read_prompts(job.inputs, settings.prompts, subject.builder)
    residuals = residuals_of(subject, prompts, settings)
    directions = estimate(residuals["harmful"], residuals["harmless"], settings.directions, job.seed)
    edits = Edits(
        targets_of(subject.model, settings.edit.components, settings.edit.through_norms), settings.edit.normalization
    )
    examiner = Examiner(subject, edits, prompts, settings.search, settings.objectives, job.seed)
    check_refusals(job, examiner)
    setup_seconds = time.time() - started
    layers = len(blocks_of(subject.model))
    search = Search(job.state / JOURNAL, settings, layers, job.seed, _fingerprint(job, settings, subject))
    search.run(
        lambda proposed, known: examiner.examine([trial.plan(directions, edits) for trial in proposed], known),
        lambda result: scores(result.measures, examiner.base, settings.objectives),
    )
    trials = outcome.marked(search.records(), settings.selection, settings.search.kl_gate)
    best = next(trial for trial in trials if trial["chosen"])
    log.info("Trial %d is chosen: KL %.4f, %d refusals", best["number"], best["kl"], best["refusals"])
    plan = search.parameters_of(best["number"]).plan(directions, edits)
    exact = settings.edit.normalization in ("none", "pre")
    answers = answers_of(examiner, plan)
    manifest, exported = export(
        job, examiner, plan, answers["edited"]["harmful"], rank=1 if exact else settings.edit.adapter_rank
    )
    exported["kl_of_trial"] = best["kl"]
    write_directions(job.folder, directions.candidates)
    outcome.write(
        job.folder,
        {
            "trials.jsonl": trials,
            "pareto.json": [trial for trial in trials if trial["pareto"]],
            "summary.json": outcome.summary(examiner.base, trials, exported, settings.selection, setup_seconds, layers),
            "comparison.json": outcome.comparison(prompts, answers, examiner.refuses, settings.outcome),
            **(outcome.geometry_files(residuals) if settings.outcome.geometry else {}),
        },
    )
    shutil.copyfile(job.state / JOURNAL, job.folder / JOURNAL)
    return {
        **manifest,
        "abliteration": {
            "trials": len(trials),
            "base_refusals": examiner.base.refusals,
            "chosen": {key: best[key] for key in ("number", "kl", "refusals", "n")},
            "exported": exported,
        },
    }


def residuals_of(subject: LanguageModel, prompts: Any, settings: AttackSettings) -> dict[str, Any]:
    """The residuals of both sides' direction prompts."""
    return {
        side: subject.residuals(
            getattr(prompts, f"{side}_directions"),
            winsorise=settings.directions.winsorise,
            final_norm=settings.directions.final_norm,
            keep=settings.directions.needs_rows or settings.outcome.geometry,
        )
        for side in ("harmful", "harmless")
    }


def check_refusals(job: Job, examiner: Examiner) -> None:
    """Raise BulwarkError if the parent refuses nothing."""
    base = examiner.base
    log.info("%d of %d harmful search prompts are refused", base.refusals, base.harmful)
    if not base.refusals:
        raise BulwarkError(
            f"{job.parent}: the model refuses none of the {base.harmful} harmful prompts that trials are measured on, "
            "so there is nothing to remove. Attack a model that refuses, or take other prompts."
        )


def answers_of(examiner: Examiner, plan: Plan) -> dict[str, dict[str, list[Answer]]]:
    """Whole answers of the model as it is and as `plan` makes it: {model: {side: answers}}."""
    return {
        "base": {"harmful": examiner.base_answers, "harmless": examiner.answers([{}], "harmless")[0]},
        "edited": {side: examiner.answers([plan], side)[0] for side in ("harmful", "harmless")},
    }


def export(
    job: Job,
    examiner: Examiner,
    plan: Plan,
    trial_answers: Sequence[Answer],
    rank: int | None,
    also: Callable[[Any], list[str]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save the edited model and its adapter into the folder of `job`, load it again and measure it.

    trial_answers: of the model edited in hooks, to the harmful prompts. rank: of the adapter, None for none.
    also(model): edits more weights and returns their names; there is no adapter then. The examiner's model is edited in
    place and released before the exported one is loaded: if the caller holds no other reference to it, there is one
    model in memory at a time.
    Returns what the manifest records, and what the exported weights do.
    """
    from bulwark.abliteration.edit import export as exports
    from bulwark.abliteration.search import outcome
    from bulwark.models import checkpoints
    from bulwark.models.batching import free_memory
    from bulwark.steering import embedded

    model, edits = examiner.model, examiner.edits
    job.folder.mkdir(parents=True, exist_ok=True)
    folder = job.folder / exports.ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    with_adapter = bool(rank and plan and also is None and exports.has_adapter(edits.targets))
    if with_adapter:
        factors = exports.adapters(edits, plan, rank, job.seed)
        exports.write_adapter(model, factors, folder, "the parent of this checkpoint")
    changed = exports.merge(model, edits, plan) + (also(model) if also is not None else [])
    checkpoints.save_model(model, examiner.subject.tokenizer, job.folder)
    embedded.pass_on(manifests.weights_folder(job.parent), job.folder)
    dtype, device = model.dtype, model.device
    del model
    examiner.release()
    free_memory()
    examiner.take(checkpoints.load_model(job.folder, dtype, device, unfinished=True).eval())
    manifest = {
        "template": manifests.open_manifest(job.parent)[2],
        **NOTICE,
        "changed_modules": changed,
        "adapter": exports.ADAPTER if with_adapter else None,
    }
    return manifest, outcome.exported(examiner, trial_answers)


def write_directions(folder: Path, directions: dict[str, Any]) -> None:
    """Write directions, {name: [L+1, hidden] or [hidden]}, beside the weights."""
    from safetensors.torch import save_file

    save_file({name: rows.float().contiguous() for name, rows in directions.items()}, folder / DIRECTIONS)
    files.readable(folder / DIRECTIONS)


def _fingerprint(job: Job, settings: AttackSettings, subject: LanguageModel) -> str:
    """A digest of all that decides a trial; not of how many there are, which is chosen and what is written of it."""
    decisive = settings.model_dump(
        mode="json", exclude={"selection": True, "outcome": True, "search": {"trials", "seconds"}}
    )
    return files.digest(
        {
            "settings": decisive,
            "seed": job.seed,
            "checkpoint": subject.description["digest"],
            "prompt": subject.builder.digest,
            "dtype": str(subject.model.dtype),
            "inputs": {name: files.digest(Path(path)) for name, path in job.inputs.items()},
        }
    )
