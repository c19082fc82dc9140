"""On a real SLURM cluster: a training on two nodes, gpus by gres, more memory after a lack of it, job arrays.

The nodes are several daemons on this machine, and their gpus are devices such as /dev/null: what is tested is what
SLURM is asked for, and that the processes find one another. They compute on CPUs, and talk over gloo.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from slurm_runs import Cluster, ClusterError, Run, running
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from bulwark.jobs import slurm
from tests.conftest import SMALLEST, Checkout, copy_of_the_tree

CHECKPOINT = "results/checkpoints/miniature/{}/seed0/checkpoint.json"
RECORDS = [f"results/data/miniature_{name}/test.jsonl" for name in ("sep", "tasks")]


def configured(*overlays: str) -> tuple[str, ...]:
    return ("--configfile", SMALLEST, *(f"tests/slurm/{overlay}.yaml" for overlay in overlays), "--")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with running(nodes=2, gpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def prepared(two_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the repository in which the base model has been pre-trained, without SLURM, and records are there."""
    copy = copy_of_the_tree(tmp_path_factory.mktemp("prepared") / "bulwark")
    copy.snakemake("--cores", "2", *configured(), CHECKPOINT.format("base"), *RECORDS)
    return copy


@pytest.mark.slow
def test_two_nodes_train_the_weights_of_one_with_as_many_processes(prepared, two_nodes):
    weights = {}
    folder = prepared.folder / CHECKPOINT.format("aside").removesuffix("/checkpoint.json")
    for overlay, nodes in (("two_nodes", "2"), ("one_node", "1")):
        with Run(prepared.folder, two_nodes, *configured(overlay), CHECKPOINT.format("aside")) as run:
            run.finish()
        [(number, job)] = run.submitted().items()
        assert job == "apply_step/miniature_aside_0"
        assert two_nodes.ended_jobs()[number]["NodeCnt"] == nodes
        weights[overlay] = load_file(folder / "model.safetensors")
        shutil.rmtree(folder)
    assert weights["two_nodes"].keys() == weights["one_node"].keys()
    # Two processes exchange sums of two numbers, which do not depend on their order: so not a bit differs.
    assert [name for name, one in weights["one_node"].items() if not torch.equal(one, weights["two_nodes"][name])] == []


@pytest.mark.slow
def test_answers_are_submitted_as_an_array(prepared, two_nodes):
    answers = [f"results/answers/miniature/base/seed0/{benchmark}.jsonl" for benchmark in ("sep", "tasks")]
    arrays = ("--slurm-array-jobs", "generate_answers", "--slurm-init-seconds-before-status-checks", "2")
    with Run(prepared.folder, two_nodes, *arrays, *configured(), *answers) as run:
        run.finish()
    assert "The individual task IDs are 1-2." in run.output
    assert run.submitted() == {}
    assert all((prepared.folder / path).exists() for path in answers)


class Resources(dict):
    """As a job's of Snakemake: keys are attributes, too."""

    __getattr__ = dict.__getitem__


def submitted(cluster: Cluster, way: str, gpus: int, log: str, command: str, mem_mb: int = 100) -> None:
    """Submit by the plugin's own line what a job of one node asks for, and wait for its end."""
    resources = Resources(slurm.GpusAs.read(way).asks(gpus, 1), nodes=1, mem_mb=mem_mb, runtime=5)
    job = SimpleNamespace(resources=resources, threads=1)
    told = {"run_uuid": "u", "slurm_logfile": log, "comment_str": "c", "account": "", "partition": "", "workdir": None}
    line = shlex.split(get_submit_command(job, told) + set_gres_string(job))
    cluster.command(*line, "--wait", "--wrap", command)


STEP = "srun -n1 --cpu-bind=q --cpus-per-task=1 --nodes=1 env"  # as the plugin starts it


@pytest.mark.parametrize("way", ["gres", "gpus"])
def test_gpus_are_given_as_they_are_asked_for(way, two_nodes, tmp_path):
    log = tmp_path / "job.log"
    submitted(two_nodes, way, 2, str(log), STEP)
    assert "SLURM_STEP_GPUS=0,1" in log.read_text().splitlines()


def test_where_whole_nodes_are_given_gpus_cannot_be_counted_and_need_not_be_asked_for(tmp_path):
    log = tmp_path / "job.log"
    refused = "Requested GRES option unsupported by configured SelectType plugin"
    with running(gpus=2, more={"SelectType": "select/linear", "SelectTypeParameters": "CR_Memory"}) as cluster:
        with pytest.raises(ClusterError, match=refused):
            submitted(cluster, "gpus", 2, str(log), STEP)
        submitted(cluster, "none", 2, str(log), STEP)
    assert "SLURM_NTASKS=1" in log.read_text().splitlines()


def test_an_attempt_that_slurm_ended_for_its_memory_is_followed_by_one_with_more(tmp_path):
    counted = {"JobAcctGatherType": "jobacct_gather/linux", "JobAcctGatherParams": "OverMemoryKill"}
    takes = shlex.join([sys.executable, "-c", "import time; taken = bytearray(300 << 20); time.sleep(60)"])
    with running(more={**counted, "JobAcctGatherFrequency": "1"}) as cluster, pytest.raises(ClusterError):
        submitted(cluster, "gres", 0, str(tmp_path / "7.log"), f"srun -n1 {takes}")
    assert slurm.memory(100, 2, tmp_path) == 150
