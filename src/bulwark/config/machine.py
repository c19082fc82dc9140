"""What this machine lacks for a plan: found before the first job starts, not hours later."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from bulwark.errors import BulwarkError
from bulwark.judges import JudgeSettings, module_of


def gpus_here() -> list[str]:
    """The GPUs that local jobs could use, as CUDA_VISIBLE_DEVICES names them, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number in range(listed.stdout.count("GPU "))] if listed.returncode == 0 else []


def refuse_without_gpus(needed: Mapping[str, int], here: int) -> None:
    """Raise BulwarkError if a job needs more GPUs than there are; needed: {job in words: GPUs}."""
    short = {job: gpus for job, gpus in needed.items() if gpus > here}
    if not short:
        return
    worst = max(short, key=short.__getitem__)
    raise BulwarkError(
        f"{len(short)} jobs of this plan need GPUs that this machine does not have: {worst} needs {short[worst]}, here "
        f"are {here}. Nothing was started.\n"
        "Run instead, on a SLURM cluster:    snakemake --profile slurm all\n"
        "or see what it would cost:          bulwark plan all\n"
        "or run it in miniature on two CPUs: snakemake --configfile config/miniature.yaml -c2 all"
    )


def refuse_without_key(judges: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raise BulwarkError if a judge needs a key that is not set; judges: {job in words: its judge's settings}."""
    if os.environ.get("OPENAI_API_KEY"):
        return
    for job, judge in judges.items():
        if not judge:
            continue
        settings = JudgeSettings.model_validate(dict(judge))
        if asks := getattr(module_of(settings.kind), "asks", None):
            raise BulwarkError(
                f"{job} asks the judge {asks(settings.own)}, but OPENAI_API_KEY is not set. "
                "Nothing was started.\n"
                "Set it (any text, if your own endpoint needs none) and, for an endpoint of your own, OPENAI_BASE_URL; "
                "or name another judge in an overlay."
            )


def capped(wanted: Mapping[str, int], cores: int) -> str:
    """What is said where jobs get fewer threads than they want, as in a small allocation; "" where none does.

    wanted: {job in words: threads}. Snakemake gives each as many as there are cores, without a word.
    """
    short = {job: threads for job, threads in wanted.items() if threads > cores}
    if not short:
        return ""
    worst = max(short, key=short.__getitem__)
    return (
        f"{len(short)} jobs get fewer threads than they are meant to have: {worst} should have {short[worst]}, and "
        f"this run has {cores} (-c). They take longer. Within a SLURM job give -c as many as it has "
        "(--cpus-per-task of salloc or sbatch)."
    )
