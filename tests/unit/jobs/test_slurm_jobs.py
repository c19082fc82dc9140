"""What SLURM is asked for, read from the command lines of its plugin; memory after a lack of it; nodes; SLURM_CONF."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm_jobstep import get_gpu_setting

from bulwark.errors import BulwarkError
from bulwark.jobs import slurm
from bulwark.jobs.slurm import GpusAs

SRUN = Path(__file__).parents[3] / "workflow" / "bin" / "srun"
TOLD = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "", "partition": "", "workdir": None}

# As SLURM prints it: a job array whose last job has the array's own number, and a node.
ARRAY = """\
JobId=41235 ArrayJobId=41234 ArrayTaskId=1 JobName=a NumNodes=1 ReqNodeList=(null) NodeList=cpu[1] BatchHost=cpu1
JobId=41234 ArrayJobId=41234 ArrayTaskId=2 JobName=b NumNodes=2 ReqNodeList=x NodeList=gpu[003,009] BatchHost=gpu003
"""
NODE = "NodeName=gpu003 Arch=x86_64 NodeAddr=10.1.0.3 NodeHostName=gpu003-ib Version=22.05.8 OS=Linux"


class Resources(dict):
    """As a job's of Snakemake: keys are attributes, too."""

    __getattr__ = dict.__getitem__


def line(way: str, gpus: int, nodes: int) -> tuple[set[str], str]:
    """The words of the plugin's sbatch that concern GPUs, nodes and tasks, and what its job step tells srun of GPUs."""
    asks = GpusAs.read(way).asks(gpus, nodes)
    job = SimpleNamespace(resources=Resources(asks, nodes=nodes, mem_mb=100, runtime=5), threads=4)
    words = (get_submit_command(job, TOLD) + set_gres_string(job)).split()
    return {word for word in words if word.startswith(("--g", "--no", "--nt"))}, get_gpu_setting(job)


@pytest.mark.parametrize(
    ("way", "gpus", "nodes", "asked", "of_srun"),
    [
        ("gres", 8, 1, {"--nodes=1", "--gres=gpu:8"}, ""),
        ("'gres'", 8, 2, {"--nodes=2", "--gres=gpu:8"}, ""),
        ("gres:a100.80gb", 4, 2, {"--nodes=2", "--gres=gpu:a100.80gb:4"}, ""),
        ("gres", 0, 1, {"--nodes=1", "--ntasks=1"}, ""),
        ("gres", 0, 2, {"--nodes=2", "--ntasks=2"}, ""),
        ("gpus", 8, 1, {"--nodes=1", "--gpus=8"}, "--gpus=8"),
        ("gpus:h100", 8, 1, {"--nodes=1", "--gpus=h100:8"}, "--gpus=8"),
        ("gpus:h100", 0, 1, {"--nodes=1", "--ntasks=1"}, ""),
        ("none", 8, 2, {"--nodes=2", "--ntasks=2"}, ""),
    ],
)
def test_what_the_plugin_asks_for(way, gpus, nodes, asked, of_srun):
    assert line(way, gpus, nodes) == (asked, of_srun)


@pytest.mark.parametrize("way", ["", "gress", "gres:", "gres:a:8", "none:a100", "gres: a100"])
def test_another_way_is_refused_with_those_that_there_are(way):
    with pytest.raises(BulwarkError, match=r"gpus_as is .*gres, gres:MODEL, gpus, gpus:MODEL and none"):
        GpusAs.read(way)


def test_gpus_of_several_nodes_cannot_be_counted_for_the_whole_job():
    nodes = {"apply_step for a": 1, "apply_step for b": 2}
    with pytest.raises(BulwarkError, match="apply_step for b needs GPUs on 2 nodes"):
        GpusAs.read("gpus").refuse(nodes)
    GpusAs.read("gpus").refuse({"apply_step for a": 1})
    GpusAs.read("gres").refuse(nodes)
    GpusAs.read("none").refuse(nodes)


KILLED = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
KILLED_BEFORE = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0 cgroup.\n"
KILLED_BY_SRUN = "srun: error: gpu003: task 0: Out Of Memory\n"
KILLED_BY_COUNT = "slurmstepd: error: StepId=7.0 exceeded memory limit (900 > 400), being killed\n"
LATE = "slurmstepd: error: *** JOB 7 ON gpu003 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
ON_THE_GPU = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


@pytest.mark.parametrize(
    ("printed", "attempt", "asked"),
    [
        ([], 1, 1000),
        ([KILLED], 1, 1000),  # of an earlier run
        ([KILLED], 2, 1500),
        ([KILLED_BEFORE], 2, 1500),
        ([KILLED_BY_SRUN], 2, 1500),
        ([KILLED_BY_COUNT], 2, 1500),
        ([LATE], 2, 1000),
        ([ON_THE_GPU], 2, 1000),
        ([KILLED, KILLED, LATE], 2, 1000),
        ([LATE, KILLED], 3, 1500),
        ([KILLED, KILLED], 3, 2250),
    ],
)
def test_an_attempt_asks_for_more_memory_where_an_earlier_one_lacked_it(tmp_path, printed, attempt, asked):
    for number, text in enumerate(printed):
        log = tmp_path / f"{9 - number}.log"
        log.write_text(f"before\n{text}after\n")
        os.utime(log, (1000 + number, 1000 + number))
    assert slurm.memory(1000, attempt, tmp_path) == asked


def test_without_logs_an_attempt_asks_for_what_the_first_one_did(tmp_path):
    assert slurm.memory(1000, 2, None) == 1000
    assert slurm.memory(1000, 2, tmp_path / "none") == 1000


def scontrol(*arguments: str) -> str:
    answers = {
        ("show", "job", "--oneliner", "41234"): ARRAY,
        ("show", "hostnames", "gpu[003,009]"): "gpu003\ngpu009\n",
        ("show", "node", "--oneliner", "gpu003"): NODE,
    }
    return answers[arguments]


def test_the_nodes_are_the_jobs_whatever_the_step_says():
    environment = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODELIST": "gpu003"}
    given = slurm.allocation(environment, 2, scontrol)
    assert given == slurm.Allocation("41234", ("gpu003", "gpu009"), "10.1.0.3")


@pytest.mark.parametrize(
    ("environment", "nodes", "told"),
    [({}, 2, r"2 nodes .* no SLURM job"), ({"SLURM_JOB_ID": "41234"}, 3, r"3 nodes .* this SLURM job has 2")],
)
def test_nodes_that_are_not_there_are_refused(environment, nodes, told):
    with pytest.raises(BulwarkError, match=told):
        slurm.allocation(environment, nodes, scontrol)


def test_a_job_that_scontrol_does_not_know():
    with pytest.raises(BulwarkError, match="nothing of NodeList of job 7"):
        slurm.allocation({"SLURM_JOB_ID": "7"}, 2, lambda *_: ARRAY)


def test_a_step_in_a_step_starts_as_from_outside():
    given = {"SLURM_NNODES": "1", "SRUN_DEBUG": "3", "SBATCH_MEM": "1", "SLURM_CONF": "/c", "PATH": "/bin"}
    assert slurm.outside_step(given) == {"SLURM_CONF": "/c", "PATH": "/bin"}


def test_the_users_slurm_conf_reaches_the_srun_of_the_job_step(tmp_path):
    real = tmp_path / "a (real) folder"
    real.mkdir()
    (real / "srun").write_text('#!/bin/sh\necho "$SLURM_CONF"\nprintf "[%s]" "$@"\n')
    (real / "srun").chmod(0o755)
    users = {"PATH": f"/nowhere:{real}:{os.environ['PATH']}", "SLURM_CONF": "/my (own)/slurm.conf"}
    environment = users | slurm.passing_conf(users, SRUN.parent)
    del environment["SLURM_CONF"]  # as the job step does
    done = subprocess.run(
        ["srun", "-n1", "two words", "(x)"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "/my (own)/slurm.conf\n[-n1][two words][(x)]"


def test_nothing_is_passed_on_where_there_is_nothing():
    assert slurm.passing_conf({"PATH": "/bin"}, SRUN.parent) == {}
