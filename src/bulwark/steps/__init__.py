"""Steps: each maps a checkpoint to a checkpoint. One file per kind; the file's name is the kind.

A module of this package defines

* `Settings`, a closed settings class with `inputs()`: the files under results/ it reads, by name, as path
  templates in which `{model}`, `{parent}` (the recipe before this step), `{seed}` and `{prefix}` (so that
  `{prefix}x` is what step x makes of the same parent) may stand;
* optionally `METHOD`: names of further modules whose code makes the step what it is (see `catalogue.step_digest`);
* optionally `STAGE`: whose resources of config/models/ a job of it takes, "train" (the default) or "generate";
* `run(job, settings)`: does the work, writes the weights into `job.folder` and returns what the manifest tells of it.

`execute` frames every step in the same way. Modules import nothing heavy at the top, because the workflow reads
their settings when it plans.
"""

from __future__ import annotations

import importlib
import shutil
import time
from pathlib import Path
from types import ModuleType

from bulwark.jobs.job import Job
from bulwark.settings import validated


def module_of(kind: str) -> ModuleType:
    """Import the module of a kind of step."""
    return importlib.import_module(f"{__name__}.{kind}")


def execute(job: Job) -> None:
    """Run the step and write its manifest last, so that a checkpoint without manifest is never taken for finished."""
    from bulwark import files
    from bulwark.models import manifests

    started = time.time()
    module = module_of(job.kind)
    settings = validated(module.Settings, job.settings, f"settings of the step {job.kind}")
    told = module.run(job, settings)
    if not told.pop("main_process", True):
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
            **told,
            "wall_seconds": round(time.time() - started, 1),
            "provenance": manifests.provenance(),
        },
    )
    shutil.rmtree(job.state, ignore_errors=True)


def perform(job: Job, gpus: int = 0, nodes: int = 1, threads: int = 1) -> None:
    """Run the step here with one process, or start one process per GPU.

    Raises BulwarkError with the end of the output if a started process fails.
    """
    if gpus * nodes <= 1:
        import torch

        torch.set_num_threads(threads)
        execute(job)
        return

    from bulwark.jobs import launch

    description = job.folder / "job.json"
    job.write(description)
    launch.run(launch.launch_line(__name__, str(description), gpus=gpus, nodes=nodes))
    description.unlink()
