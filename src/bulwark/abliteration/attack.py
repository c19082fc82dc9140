"""A searched attack on a checkpoint, start to end: directions, search, choice, export, and its record.

The attack measures a defense: what removing its refusals costs, and what is left of them. The weights it makes stay
on this machine; their manifest says what they are, and nothing in this project uploads anything.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bulwark import files, seals
from bulwark.abliteration.settings import (
    AttackSettings,
    GradientEditSettings,
    OutcomeSettings,
    RefusalDirectionSettings,
)
from bulwark.errors import BulwarkError
from bulwark.models import manifests

if TYPE_CHECKING:
    from torch import Tensor

    from bulwark.abliteration.edit.hooks import Plan
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.jobs.job import Job
    from bulwark.models.open import LanguageModel

log = logging.getLogger(__name__)

JOURNAL, DIRECTIONS = "study.journal", "directions.safetensors"
NONE_REFUSED = "none of the harmful prompts that trials are measured on is refused"
NOTICE = {
    "abliterated": True,
    "release": "never",
    "notice": "Refusals were removed from these weights to measure a defense. Keep them on this machine.",
}


def attack(job: Job, settings: AttackSettings) -> dict[str, Any]:
    """Attack the parent of `job` and save the chosen trial as a model; returns what the manifest records.

    Raises BulwarkError if the parent refuses nothing, so that there is nothing to remove, unless it is to be saved as
    it is then.
    """
    from bulwark.abliteration.measure.directions import estimate
    from bulwark.abliteration.measure.subject import continued
    from bulwark.abliteration.search import outcome
    from bulwark.abliteration.search.objectives import scores
    from bulwark.abliteration.search.search import Search
    from bulwark.models.anatomy import blocks_of

    started = time.time()
    examiner = examiner_of(job, settings)
    edits, base = examiner.edits, examiner.base
    residuals = {
        side: examiner.subject.residuals(
            continued(examiner.subject, getattr(examiner.prompts, f"{side}_directions"), settings.prompts.after),
            winsorise=settings.directions.winsorise,
            final_norm=settings.directions.final_norm,
            keep=settings.directions.needs_rows or settings.outcome.geometry,
        )
        for side in ("harmful", "harmless")
    }
    if settings.outcome.geometry:
        job.folder.mkdir(parents=True, exist_ok=True)
        outcome.write(job.folder, outcome.geometry_files(residuals))
    if not base.refusals:
        return unedited(job, examiner, settings, NONE_REFUSED, time.time() - started)
    directions = estimate(residuals["harmful"], residuals["harmless"], settings.directions, job.seed)
    del residuals
    setup_seconds = time.time() - started
    layers = len(blocks_of(examiner.model))
    search = Search(job.state / JOURNAL, settings, layers, job.seed, _fingerprint(job, settings, examiner.subject))
    search.run(
        lambda proposed, known: examiner.examine([trial.plan(directions, edits) for trial in proposed], known),
        lambda result: scores(result.measures, base, settings.objectives),
    )
    exact = settings.edit.normalization in ("none", "pre")
    rank = 1 if exact else settings.edit.adapter_rank
    manifest = concluded(
        job,
        examiner,
        search.records(),
        lambda number: search.parameters_of(number).plan(directions, edits),
        directions.candidates,
        settings,
        setup_seconds,
        rank,
    )
    shutil.copyfile(job.state / JOURNAL, job.folder / JOURNAL)
    return manifest


def unedited(
    job: Job,
    examiner: Examiner,
    settings: AttackSettings | GradientEditSettings | RefusalDirectionSettings,
    reason: str,
    setup_seconds: float,
) -> dict[str, Any]:
    """Save the parent as it is, as the only trial, and the reason; returns what the manifest records.

    Raises BulwarkError with the reason if the settings want the attack to stop here.
    """
    if settings.outcome.nothing_to_remove == "stop":
        raise BulwarkError(
            f"{job.parent}: {reason}, so there is nothing to remove. Attack a model that refuses, take other prompts, "
            "or set outcome.nothing_to_remove: unedited, which saves the model as it is."
        )
    log.warning("Nothing to remove: %s. The model is saved as it is.", reason)
    told = {"number": 0, "parameters": {}, "profile": {}, "objectives": None}
    records = [told | examiner.examine([{}])[0].as_dict()]
    manifest = concluded(job, examiner, records, lambda number: {}, {}, settings, setup_seconds, None)
    return {**manifest, "abliteration": {**manifest["abliteration"], "nothing_to_remove": reason}}


def concluded(
    job: Job,
    examiner: Examiner,
    records: list[dict[str, Any]],
    plan_of: Callable[[int], Plan],
    directions: Mapping[str, Tensor],
    settings: AttackSettings | GradientEditSettings | RefusalDirectionSettings,
    setup_seconds: float,
    rank: int | None,
) -> dict[str, Any]:
    """Choose one of the measured trials, export it, and write what the search found; returns what the manifest records.

    records: by number, as `Search.records` gives them. plan_of(number): the edits of a trial. directions, rank: see
    `export`.
    """
    from bulwark.abliteration.search import outcome, second_look
    from bulwark.models.anatomy import blocks_of

    selection, base, layers = settings.selection, examiner.base, len(blocks_of(examiner.model))
    marked = outcome.marked(records, selection, settings.search.kl_gate)
    trials = second_look.looked_at(examiner, marked, plan_of, selection)
    best = next(trial for trial in trials if trial["chosen"])
    log.info("Trial %d is chosen: KL %.4f, %d refusals", best["number"], best["kl"], best["refusals"])
    manifest, exported = export(job, examiner, plan_of(best["number"]), directions, settings.outcome, rank)
    exported["kl_of_trial"] = best["kl"]
    outcome.write(
        job.folder,
        {
            "trials.jsonl": trials,
            "pareto.json": [trial for trial in trials if trial["pareto"]],
            "summary.json": outcome.summary(base, trials, exported, selection, setup_seconds, layers),
        },
    )
    return {
        **manifest,
        "abliteration": {
            "trials": len(trials),
            "base_refusals": base.refusals,
            "chosen": {key: best[key] for key in ("number", "kl", "refusals", "n")},
            "exported": exported,
        },
    }


def examiner_of(job: Job, settings: AttackSettings | GradientEditSettings | RefusalDirectionSettings) -> Examiner:
    """The parent of `job`, open, with the prompts that it is measured on.

    Raises BulwarkError if it cannot be edited, with the reason (see `export.refuse_unwritable` and
    `checking.check_edits`). It may refuse nothing: see `unedited`.
    """
    from bulwark.abliteration.edit.checking import check_edits
    from bulwark.abliteration.edit.export import refuse_unwritable
    from bulwark.abliteration.edit.hooks import Edits
    from bulwark.abliteration.edit.targets import targets_of
    from bulwark.abliteration.measure.subject import read_prompts
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.models.open import open_model
    from bulwark.models.placing.loading import Loading

    longest = max(settings.search.max_new_tokens, settings.prompts.after)
    loading = Loading(**job.loading, four_bit=settings.quantised is not None)
    subject = open_model(job.parent, settings.dtype, new_tokens=longest, loading=loading)
    prompts = read_prompts(job.inputs, settings.prompts, subject.builder)
    edit = settings.edit
    targets = targets_of(subject.model, edit.components, edit.through_norms)
    refuse_unwritable(targets, loading.four_bit)
    # Where the edit leaves norms out of account, as HERETIC does, what is checked is that it is at the right places.
    check_edits(subject.model, targets_of(subject.model, edit.components), prompts.harmful_search, job.seed)
    edits = Edits(targets, edit.normalization)
    examiner = Examiner(subject, edits, prompts, settings.search, settings.objectives, job.seed)
    base = examiner.base
    log.info("%d of %d harmful search prompts are refused", base.refusals, base.harmful)
    return examiner


def export(
    job: Job,
    examiner: Examiner,
    plan: Plan,
    directions: Mapping[str, Tensor],
    settings: OutcomeSettings,
    rank: int | None,
    also: Callable[[Any], list[str]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save the edited model into the folder of `job` with adapter, directions and answers; load it and measure it.

    directions: {name: [L+1, hidden] or [hidden]}, written beside the weights. rank: of the adapter, None for none.
    also(model): edits more weights and returns their names; there is no adapter then. The examiner's model is edited in
    place and released before the exported one is loaded: if the caller holds no other reference to it, there is one
    model in memory at a time. A model that is packed in 4 bits is released first; the edit is written into the parent's
    own weights, on the CPU, and the exported ones are measured packed, as the trials were.
    Returns what the manifest records, and what the exported weights do.
    """
    from safetensors.torch import save_file

    from bulwark.abliteration.edit import export as exports
    from bulwark.abliteration.edit.hooks import Edits
    from bulwark.abliteration.search import outcome
    from bulwark.models import checkpoints
    from bulwark.models.batching import free_memory
    from bulwark.models.folders.carried import carry_on
    from bulwark.models.placing import spread
    from bulwark.steering import embedded

    answers = {
        "base": {"harmful": examiner.base_answers, "harmless": examiner.answers([{}], "harmless")[0]},
        "edited": {side: examiner.answers([plan], side)[0] for side in ("harmful", "harmless")},
    }
    model, edits = examiner.model, examiner.edits
    dtype, device, loading = model.dtype, model.device, examiner.subject.loading
    job.folder.mkdir(parents=True, exist_ok=True)
    outcome.write(job.folder, {"comparison.json": outcome.comparison(examiner, answers, settings)})
    save_file({name: rows.float().contiguous() for name, rows in directions.items()}, job.folder / DIRECTIONS)
    files.readable(job.folder / DIRECTIONS)
    if loading.four_bit:
        # Paths and norms' gains of the targets are all that is kept of the packed model, which makes room first.
        kept = [replace(target, module=None, gain=_on_cpu(target.gain)) for target in edits.targets]
        del model
        examiner.release()
        free_memory()
        model = checkpoints.load_model(manifests.weights_folder(job.parent), dtype)
        edits = Edits(
            [replace(target, module=model.get_submodule(target.path)) for target in kept], edits.normalization
        )
        exports.refuse_unwritable(edits.targets)
    folder = job.folder / exports.ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    with_adapter = bool(rank and plan and also is None and exports.has_adapter(edits.targets))
    if with_adapter:
        factors = exports.adapters(edits, plan, rank, job.seed)
        exports.write_adapter(model, factors, folder, "the parent of this checkpoint")
    changed = exports.merge(model, edits, plan) + (also(model) if also is not None else [])
    names = carry_on(job.parent, job.folder)
    checkpoints.save_model(model, examiner.subject.tokenizer, job.folder)
    embedded.pass_on(manifests.weights_folder(job.parent), job.folder)
    del model
    edits.targets.clear()
    examiner.release()
    free_memory()
    examiner.subject.model = spread.load(job.folder, dtype, device, loading, unfinished=True).eval()
    manifest = {
        "template": manifests.open_manifest(job.parent)[2],
        **NOTICE,
        "carried": names,
        "changed_modules": changed,
        "adapter": exports.ADAPTER if with_adapter else None,
        **({"searched_in": "nf4"} if loading.four_bit else {}),
    }
    return manifest, outcome.exported(examiner, answers["edited"]["harmful"])


def _on_cpu(gain: Tensor | None) -> Tensor | None:
    return None if gain is None else gain.cpu()


def _fingerprint(job: Job, settings: AttackSettings, subject: LanguageModel) -> str:
    """A digest of all that decides a trial; not of how many there are, which is chosen and what is written of it."""
    decisive = settings.model_dump(
        mode="json", exclude={"selection": True, "outcome": True, "search": {"trials", "seconds"}}
    )
    return files.digest(
        {
            "settings": decisive,
            "seed": job.seed,
            "checkpoint": seals.content(subject.manifest),
            "prompt": subject.builder.digest,
            "dtype": str(subject.model.dtype),
            "inputs": {name: seals.content(path) for name, path in job.inputs.items()},
        }
    )
