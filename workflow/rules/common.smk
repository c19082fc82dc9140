# What all stages share: the checked configuration, and the few functions that turn wildcards into paths.
import json
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from bulwark.config import catalogue as catalogues
from bulwark.config import checks as checking, digests, recipes
from bulwark.errors import BulwarkError, nearest
from bulwark.miniature.settings import MiniatureSettings
from bulwark.settings import validated
from bulwark.models.anatomy import check_layer
from bulwark.steering.settings import check_layers

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)

try:
    catalogue = catalogues.load(config, ROOT / "config")
except BulwarkError as error:
    raise WorkflowError(str(error)) from None


# Wildcards stop at a slash and nothing more: names are checked by `explained`, which can say what was meant.
wildcard_constraints:
    model=r"[^/]+",
    recipe=r"[^/]+",
    seed=r"\d+",
    dataset=r"[^/]+",
    split=r"[^/.]+",
    benchmark=r"[^/.]+",
    analysis=r"[^/.]+",
    trait=r"[^/.]+",
    projection=r"[^/.]+",
    table=r"[^/.]+",
    figure=r"[^/.]+",
    claim=r"[^/.]+",


# All downloads happen in local rules with pinned revisions, whose scripts lift this; every other job reads what lies on disk.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def explained(function):
    """Let `function` of the wildcards end the workflow with the library's own message for a wrong name."""

    def of_wildcards(wildcards):
        try:
            return function(wildcards)
        except BulwarkError as error:
            raise WorkflowError(str(error)) from None

    return of_wildcards


def checkpoint_path(model, recipe, seed):
    """The manifest of a checkpoint."""
    return f"results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json"


def scores_path(model, recipe, seed, benchmark):
    return f"results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json"


def analysis_path(model, recipe, seed, analysis):
    return f"results/analyses/{model}/{recipe}/seed{seed}/{analysis}.json"


@lru_cache
def blocks_of(model):
    """The number of a model's blocks, where it is known before a job runs; else None, and the job checks."""
    entity = catalogue.model(model)
    if entity.source.miniature is not None:
        return validated(MiniatureSettings, entity.source.miniature, f"config/models/{model}.yaml").model.layers
    config = Path(entity.source.path or f"results/models/{model}") / "config.json"
    if not config.exists():
        return entity.blocks
    told = json.loads(config.read_text(encoding="utf-8"))
    return told.get("text_config", told).get("num_hidden_layers")


def with_layers(resolved, model, where):
    """`resolved` (a step, benchmark or projection as it is for `model`), if the model has the layers that it names."""
    if blocks := blocks_of(model):
        check_layers(resolved.settings, blocks, where)
    return resolved


def resources_of(stage, cost=lambda wildcards: 1.0):
    """The directive `resources` of a rule of `stage`: what config/models/<model>.yaml says, time scaled by `cost`.

    stage: its name, or what tells it from the wildcards.
    """

    def of(value):
        def resource(wildcards):
            named = stage(wildcards) if callable(stage) else stage
            return value(catalogue.resources(wildcards.model, named), wildcards)

        return explained(resource)

    return {
        "gpu": of(lambda needed, wildcards: needed.gpu),
        "nodes": of(lambda needed, wildcards: needed.nodes),
        "mem_mb": of(lambda needed, wildcards: int(needed.mem_gb * 1000)),
        # SLURM ends a job at this time, so it is half as much again as expected, and five minutes at least.
        "runtime": of(lambda needed, wildcards: max(5, round(90 * needed.hours * cost(wildcards)))),
    }


def gpus_here():
    """GPUs that a local job could use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def stop_without_gpus(workflow):
    """End a local run before its first job if a job of its plan needs more GPUs than this machine has."""
    if not workflow.local_exec:
        return
    here = gpus_here()
    short = [job for job in workflow.dag.needrun_jobs() if job.resources.get("gpu", 0) > here]
    if not short:
        return
    worst = max(short, key=lambda job: job.resources["gpu"])
    raise WorkflowError(
        f"{len(short)} jobs of this plan need GPUs that this machine does not have: {worst.rule.name} for "
        f"{'/'.join(str(value) for value in worst.wildcards)} needs {worst.resources['gpu']}, here are {here}. Nothing was started.\n"
        "Run instead, on a SLURM cluster:    snakemake --profile slurm all\n"
        "or see what it would cost:          bulwark plan all\n"
        "or run it in miniature on two CPUs: snakemake --configfile config/miniature.yaml -c2 all"
    )


def stop_without_key(workflow):
    """End a run before its first job if a judge of its plan needs a key that the environment does not have."""
    if os.environ.get("OPENAI_API_KEY"):
        return
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "score_answers":
            judge = (job.params.settings.get("scoring") or {}).get("judge") or {}
        elif job.rule.name == "judge_contrasts":
            judge = job.params.judge or {}
        else:
            continue
        if judge.get("kind") == "openai":
            raise WorkflowError(
                f"{job.rule.name} for {'/'.join(str(value) for value in job.wildcards)} asks the judge {judge['openai']['model']}, but "
                "OPENAI_API_KEY is not set. Nothing was started.\n"
                "Set it (any text, if your own endpoint needs none) and, for an endpoint of your own, OPENAI_BASE_URL; or name another "
                "judge in an overlay."
            )
