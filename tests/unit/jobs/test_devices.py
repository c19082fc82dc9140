"""Local jobs share the GPUs of a machine: none is given twice, and Snakemake starts no more jobs than there are for."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from bulwark.config import machine
from bulwark.errors import BulwarkError
from bulwark.jobs import devices

TAKE = """
import sys, time
from pathlib import Path
from bulwark.jobs import devices
devices.take(int(sys.argv[1]), Path(sys.argv[2]))
import os
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def started(tmp_path):
    """Starts a process that takes GPUs and keeps them until it is told to go on, or killed."""
    running = []

    def start(count, offered="0,1,2"):
        environment = {**os.environ, devices.VARIABLE: offered}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE, str(count), str(tmp_path)],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def has(process):
    return process.stdout.readline().strip()


def test_jobs_have_gpus_of_their_own_and_a_killed_one_gives_them_back(started):
    first, second = started(1), started(2)
    taken = has(first).split(",") + has(second).split(",")
    assert sorted(taken) == ["0", "1", "2"]
    third = started(1)
    time.sleep(1)
    first.kill()  # without any chance to clean up
    assert has(third) == taken[0]


def test_a_job_that_waits_for_two_keeps_none_meanwhile(started):
    """Otherwise two jobs that each wait for the other's would wait for ever."""
    first = started(2)
    assert has(first) == "0,1"
    second = started(2)
    time.sleep(1)
    assert has(started(1)) == "2"
    first.kill()
    assert has(second) == "0,1"


def test_where_none_are_offered_nothing_is_hidden(monkeypatch, tmp_path):
    """On a cluster each job has been given its own."""
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    devices.take(1, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert not list(tmp_path.iterdir())


def test_a_job_that_needs_more_than_there_are_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(devices.VARIABLE, "0")
    with pytest.raises(BulwarkError, match="needs 2 GPUs, and jobs of this machine share 1"):
        devices.take(2, tmp_path)


@pytest.mark.parametrize(
    ("visible", "names"), [("0,1", ["0", "1"]), ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"]), ("", []), ("-1", [])]
)
def test_the_gpus_are_named_as_the_driver_does(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus_here() == names


RULES = """
from bulwark.jobs import scheduling

rule all:
    input: "a", "b"

rule one:
    output: "{name}"
    wildcard_constraints: name="[ab]"
    resources: gpus_per_node=1
    shell: "date +%s.%N > {output}.begins; sleep 2; date +%s.%N > {output}"

onstart:
    scheduling.share(workflow.scheduler, "gpus_per_node", SHARED)
"""


@pytest.mark.parametrize(
    ("shared", "options", "beside"), [(1, (), False), (2, (), True), (1, ("--resources", "gpus_per_node=2"), True)]
)
def test_snakemake_starts_as_many_jobs_as_there_are_gpus_for_or_as_the_user_says(tmp_path, shared, options, beside):
    (tmp_path / "Snakefile").write_text(textwrap.dedent(RULES.replace("SHARED", str(shared))), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "-c2", *options]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    spans = [tuple(float((tmp_path / f"{name}{end}").read_text()) for end in (".begins", "")) for name in "ab"]
    (_, first_ends), (second_begins, _) = sorted(spans)
    assert (second_begins < first_ends) == beside
