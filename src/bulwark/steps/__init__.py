"""Steps: each maps a checkpoint to a checkpoint. One file per kind; the file's name is the kind.

A module of this package defines

* `Settings`, a closed settings class. Its `inputs()` gives the files under results/ that a job reads, by name, as path
  templates in which `{model}`, `{parent}` (the recipe before this step), `{seed}` and `{prefix}` (so that `{prefix}x`
  is what step x makes of the same parent) may stand;
* optionally `STAGE`: whose resources of config/models/ a job of it takes, "train" (the default) or "generate".

A step that fine-tunes derives `Settings` from `training.finetuning.FineTuningSettings` (or from
`steering.settings.AnalysedTraining` or `VectorTraining`, which know an analysis and trait vectors) and defines, if it
does anything but train the parent on its data,

* `embedding(settings)`: the role embedding to install, a description as `models.embeddings.install` takes it; without
  it the parent's is kept;
* `objective(course, settings)`: what is optimised, a `training.objectives.Objective`; without it the next token. A
  defense that is a loss overrides `loss(model, batch)`; `course` has the job, the model, the records and the number of
  steps (`training.finetuning.Course`);
* `observers(course, settings)`: what watches the training, a list of `training.observers.Observer`.

Any other step defines

* `run(job, settings)`: does the work, writes the weights into `job.folder` and returns what the manifest records of it.

Modules import nothing heavy at the top, because the workflow reads their settings when it plans: torch, and whatever
imports it, such as `training.objectives`, is imported inside the functions.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bulwark import interrupts
from bulwark.errors import BulwarkError
from bulwark.jobs.job import Job
from bulwark.settings import validated

if TYPE_CHECKING:
    from bulwark.jobs.together import Together
    from bulwark.training.finetuning import Course, FineTuningSettings
    from bulwark.training.objectives import Objective
    from bulwark.training.observers import Observer

log = logging.getLogger(__name__)


def module_of(kind: str) -> ModuleType:
    """Import the module of a kind of step."""
    return importlib.import_module(f"{__name__}.{kind}")


def stage_of(kind: str) -> str:
    """Whose resources a job of a kind of step takes: "train" or "generate"."""
    return getattr(module_of(kind), "STAGE", "train")


def execute(job: Job) -> None:
    """Run the step and write its manifest last, so that a checkpoint without manifest is never taken for finished."""
    from bulwark import files
    from bulwark.models import manifests

    started = time.time()
    module = module_of(job.kind)
    settings = validated(module.Settings, job.settings, f"settings of the step {job.kind}")
    record = module.run(job, settings) if hasattr(module, "run") else fine_tune(job, settings, module)
    if not record.pop("main_process", True):
        return
    manifests.write_manifest(
        Path(job.output),
        {
            **job.identity,
            "kind": job.kind,
            "settings": settings.model_dump(mode="json"),
            "parent": {"path": job.parent, "digest": files.digest(Path(job.parent))},
            "inputs": {name: {"path": path, "digest": files.digest(Path(path))} for name, path in job.inputs.items()},
            "weights": ".",
            **record,
            "wall_seconds": round(time.time() - started, 1),
            "provenance": manifests.provenance(),
        },
    )
    shutil.rmtree(job.state, ignore_errors=True)


def carry_out(job: Job) -> bool:
    """Run the step. Of a trial whose training diverges the manifest says so, and there is no model.

    Returns whether there is a model.

    So a choice among trials (`models.folders.chosen`) can leave it out, which it could not if the job failed.
    """
    from bulwark import files
    from bulwark.models import manifests

    started = time.time()
    try:
        execute(job)
        return True
    except BulwarkError as error:
        if not error.diverged or "trial" not in job.identity:
            raise
        if int(os.environ.get("RANK", 0)) == 0:
            log.warning("%s: %s", job.output, error)
            known = {
                **job.identity,
                "kind": job.kind,
                "settings": job.settings,
                "parent": {"path": job.parent, "digest": files.digest(Path(job.parent))},
                "wall_seconds": round(time.time() - started, 1),
                "provenance": manifests.provenance(),
            }
            reason = str(error).partition(". ")[0]  # what follows is about the saved state, which is removed here
            manifests.write_diverged(Path(job.output), known, f"{reason}.")
            shutil.rmtree(job.state, ignore_errors=True)
        return False


def fine_tune(job: Job, settings: FineTuningSettings, step: Any) -> dict[str, Any]:
    """Fine-tune the parent as `step` (a module with `embedding` or `objective`, or neither) says; see `finetune`.

    Every fine-tuning keeps the intervention that its parent's folder carries, and is analysed if its settings say so.
    """
    from bulwark.steering import embedded
    from bulwark.steering.dynamics.analyser import analyser_of
    from bulwark.training.finetuning import finetune
    from bulwark.training.objectives import Objective

    def parts(course: Course) -> tuple[Objective, list[Observer]]:
        observers: list[Observer] = [embedded.carried(course, settings)]  # before an objective that embeds a vector
        objective = step.objective(course, settings) if hasattr(step, "objective") else Objective()
        if hasattr(step, "observers"):
            observers += step.observers(course, settings)
        if getattr(settings, "analysis", None) is not None:
            observers.insert(0, analyser_of(course, settings, objective.phase))
        return objective, observers

    embedding = step.embedding(settings) if hasattr(step, "embedding") else None
    return finetune(job, settings, embedding, parts)


def perform(job: Job, gpus: int = 0, nodes: int = 1, threads: int = 1) -> None:
    """Run the step here with one process, or start one process per GPU, on each of several nodes one at least.

    A step that trains nothing is one process, over whose GPUs its model is spread (`Job.loading`).
    Raises BulwarkError with the end of the output if a started process fails.
    """
    if max(gpus, 1) * nodes == 1 or stage_of(job.kind) != "train":
        import torch

        torch.set_num_threads(threads)
        carry_out(job)
        return

    from bulwark.jobs import launch

    description = job.folder / "job.json"
    job.write(description)
    stop = launch.stop_file(description)
    stop.unlink(missing_ok=True)
    try:
        launch.run(launch.launch_line(__name__, str(description), gpus=gpus, nodes=nodes), stop=stop)
    finally:
        stop.unlink(missing_ok=True)
    description.unlink()


def execute_all(together: Together, description: Path) -> None:
    """Do several trainings of one parent, one after another, whose weights are read from the disk once.

    description: the file that told this process, beside which it says how far it is. The first training that fails
    raises its error, and ends all. Told to end, it ends within a training, which saves its state, or between two.
    """
    from bulwark.jobs.loading import loaded_once
    from bulwark.jobs.sealing import sealed
    from bulwark.jobs.together import begun_file, failed_file
    from bulwark.logs import log_to
    from bulwark.models import manifests

    main = int(os.environ.get("RANK", 0)) == 0
    with loaded_once(manifests.weights_folder(together.parts[0].job.parent)) as loads:
        for number, part in enumerate(together.parts):
            if number:
                _tidy_up(f"{number} of {len(together.parts)} trainings are finished" if main else None)
            log_to(part.job.log)
            if main:
                begun_file(description).write_text(part.recipe, encoding="utf-8")
            try:
                with sealed(part.sealing if main else None):
                    if main:
                        Path(part.job.output).unlink(missing_ok=True)  # as the workflow removes what a job makes
                    whole = carry_out(part.job)
            except Exception as error:
                if main:
                    reason = str(error) if isinstance(error, BulwarkError) else f"{type(error).__name__}: {error}"
                    failed_file(description).write_text(reason, encoding="utf-8")
                raise
            if not whole:  # after a divergence memory and communication may be in any state; others go on
                return
            if main:
                log.info("The parent's weights were read %d times, copied %d times.", loads.read, loads.copied)


def _tidy_up(finished: str | None) -> None:
    """Between two trainings: let go of what the last one held, and end here if any rank has been told to.

    finished: what is kept then, on the rank that says so.
    """
    import torch

    from bulwark.training import engine

    device = engine.start_processes().device
    told = torch.tensor([int(interrupts.told())], dtype=torch.int32, device=device)
    if int(engine.over_ranks(told, largest=True)):
        interrupts.leave(finished)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
