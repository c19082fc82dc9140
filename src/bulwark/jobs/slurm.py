"""SLURM: what a job asks it for, which nodes it has given, and what it needs to be told again. See docs/cluster.md.

How many processes a job starts on a node and what SLURM is asked for are two things. The first is the models' (their
`resources`), the second the cluster's: `gpus_as` in its profile. Standard library only, so that a plan can import it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bulwark.errors import BulwarkError

GPUS_AS = "gpus_as"
CONF = "BULWARK_SLURM_CONF"  # where workflow/bin/srun finds the user's SLURM_CONF
MORE_MEMORY = 1.5  # times the memory of an attempt that lacked it

_WAYS = ("gres", "gpus", "none")
_MODEL = re.compile(r"[A-Za-z0-9_.]+")  # as the plugin of SLURM takes it
# What SLURM and its srun write into the output of a job that it ends for its memory.
_LACKED_MEMORY = re.compile(r"oom[-_]kill|Out Of Memory|[Ee]xceeded (?:job |step )?memory limit")


@dataclass(frozen=True)
class GpusAs:
    """How GPUs are asked for: by `--gres` of each node, by `--gpus` of the job, or not at all; and of which model."""

    way: str
    model: str = ""

    @classmethod
    def read(cls, text: str) -> GpusAs:
        """Read "gres", "gres:MODEL", "gpus", "gpus:MODEL" or "none". Raises BulwarkError for anything else."""
        way, _, model = text.strip().strip("'\"").partition(":")
        if way not in _WAYS or (":" in text and (way == "none" or not _MODEL.fullmatch(model))):
            raise BulwarkError(
                f"{GPUS_AS} is {text.strip()}, which is no way to ask SLURM for GPUs. Write one of gres, gres:MODEL, "
                "gpus, gpus:MODEL and none in the profile of your cluster (profiles/slurm/config.yaml explains them)."
            )
        return cls(way, model)

    def asks(self, gpus: int, nodes: int) -> dict[str, int | str]:
        """What snakemake-executor-plugin-slurm 2.8 is told of a job; the names do not depend on the job.

        gpus: of each node. tasks: one per node, or sbatch would take a job of one task to one node; the plugin would
        take it for tasks per GPU where that is not stated. What is empty or 0 is not asked for.
        """
        tasks: dict[str, int | str] = {"tasks": nodes, "tasks_per_gpu": 0}
        if self.way == "gres":
            return tasks | {"gres": ":".join(filter(None, ("gpu", self.model, str(gpus)))) if gpus else ""}
        if self.way == "gpus":
            return tasks | {"gpu": gpus * nodes, "gpu_model": self.model if gpus else ""}
        return tasks

    def refuse(self, nodes: Mapping[str, int]) -> None:
        """Raise BulwarkError if a job with GPUs gets several nodes by `--gpus`; nodes: {job in words: its nodes}."""
        several = [job for job, count in nodes.items() if count > 1]
        if self.way == "gpus" and several:
            raise BulwarkError(
                f"{several[0]} needs GPUs on {nodes[several[0]]} nodes, and {GPUS_AS} is gpus: --gpus counts them for "
                "the whole job, and SLURM may give 7 of one node and 9 of the next. Nothing was started. Set "
                f"{GPUS_AS} to gres (profiles/slurm/config.yaml)."
            )


def memory(megabytes: int, attempt: int, logs: Path | None) -> int:
    """The memory that a job asks for at its `attempt` (from 1): more by half for each earlier one that lacked it.

    logs: the folder of what SLURM has printed for this job, a file per attempt. An attempt that failed for another
    reason asks for no more, because what asks for more than any node has never starts.
    """
    if attempt == 1 or logs is None:
        return megabytes
    printed = sorted(logs.glob("*.log"), key=lambda log: log.stat().st_mtime)[1 - attempt :]
    lacked = sum(bool(_LACKED_MEMORY.search(log.read_text(encoding="utf-8", errors="replace"))) for log in printed)
    return round(megabytes * MORE_MEMORY**lacked)


def passing_conf(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Variables with which what is submitted sees the user's SLURM_CONF to its end; none where that is not set.

    The plugin's job step (snakemake-executor-plugin-slurm-jobstep 0.6) drops the variable before it calls srun, and its
    executor drops it where Snakemake itself runs in a job. So a srun in `folder` that sets it again stands first.
    """
    conf = environment.get("SLURM_CONF")
    if not conf:
        return {}
    path = os.pathsep.join([str(folder), environment.get("PATH", os.defpath)])
    return {"SLURM_CONF": conf, CONF: conf, "PATH": path}


@dataclass(frozen=True)
class Allocation:
    """The job that this process runs in: its number, the names of its nodes, and the first one's address."""

    job: str
    nodes: tuple[str, ...]
    address: str


def scontrol(*arguments: str) -> str:
    """What SLURM's program scontrol prints. Raises BulwarkError if it cannot be started, or fails."""
    line = ["scontrol", *arguments]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BulwarkError(f"scontrol, which knows the nodes of this job, could not be started: {error}.") from error
    if done.returncode:
        raise BulwarkError(f"`{' '.join(line)}`, which knows the nodes of this job, failed: {done.stderr.strip()}")
    return done.stdout


def allocation(environment: Mapping[str, str], nodes: int, scontrol: Callable[..., str] = scontrol) -> Allocation:
    """The first `nodes` nodes of the job that this process runs in, whichever step of it that is.

    A step's variables name only its own nodes, and Snakemake's step has one; so scontrol is asked.
    Raises BulwarkError outside a job, and if the job has fewer nodes.
    """
    job = environment.get("SLURM_JOB_ID")
    if not job:
        raise BulwarkError(
            f"{nodes} nodes were asked for, but this is no SLURM job (SLURM_JOB_ID is not set). "
            "Start the workflow with --profile slurm, or set nodes to 1."
        )
    described = scontrol("show", "job", "--oneliner", job)
    # An array's own number is that of one of its jobs, too; then all of them are shown.
    own = next((line for line in described.splitlines() if f" JobId={job} " in f" {line} "), "")
    names = scontrol("show", "hostnames", _field(own, "NodeList", f"job {job}")).split()
    if len(names) < nodes:
        raise BulwarkError(f"{nodes} nodes were asked for, but this SLURM job has {len(names)}; raise its `nodes`.")
    first = scontrol("show", "node", "--oneliner", names[0])
    return Allocation(job, tuple(names[:nodes]), _field(first, "NodeAddr", f"node {names[0]}"))


def _field(described: str, name: str, of: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S+)", described)
    if found is None:
        raise BulwarkError(f"scontrol says nothing of {name} of {of}: {described.strip() or 'it printed nothing'}")
    return found[1]


def outside_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what SLURM set for the step that this process runs in: srun takes it for options."""
    return {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }
