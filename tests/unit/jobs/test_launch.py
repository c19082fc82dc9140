"""Launch lines as text, and that what is launched streams, fails and ends as it should."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bulwark.errors import BulwarkError
from bulwark.jobs.launch import launch_line, run

SLURM = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1"}


def scontrol(*arguments: str) -> str:
    """What SLURM's program prints of a job on two nodes, of which a step has one."""
    answers = {"job": "JobId=41234 NodeList=gpu[003-004]", "hostnames": "gpu003\ngpu004\n", "node": "NodeAddr=10.1.0.3"}
    return answers[arguments[1]]


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_process_needs_no_launcher(gpus):
    assert launch_line("bulwark.steps", "job.json", gpus, python="py") == ["py", "-m", "bulwark.steps", "job.json"]


def test_several_gpus_on_one_node_go_through_torchrun_standalone():
    line = " ".join(launch_line("bulwark.steps", "job.json", 8, python="py", environment=SLURM))
    assert line == "py -m bulwark.jobs.ranks --standalone --nproc-per-node=8 -m bulwark.steps job.json"


def test_several_nodes_get_one_torchrun_each_that_meet_on_the_first():
    line = " ".join(launch_line("bulwark.steps", "job.json", 4, 2, python="py", environment=SLURM, scontrol=scontrol))
    assert line == (
        "srun --jobid=41234 --overlap --nodelist=gpu003,gpu004 --nodes=2 --ntasks=2 --ntasks-per-node=1 "
        "--kill-on-bad-exit=1 py -m bulwark.jobs.ranks --nnodes=2 --nproc-per-node=4 "
        "--master-addr=10.1.0.3 --master-port=25234 -m bulwark.steps job.json"
    )


def test_the_cpus_of_the_job_are_passed_on_because_srun_does_not():
    line = launch_line("m", "a", 4, 2, environment=SLURM | {"SLURM_CPUS_PER_TASK": "32"}, scontrol=scontrol)
    assert "--cpus-per-task=32" in line


def test_several_nodes_without_an_allocation_are_refused():
    with pytest.raises(BulwarkError, match="no SLURM job"):
        launch_line("m", "a", 4, 2, environment={})


def test_what_starts_a_step_of_its_own_does_not_inherit_the_step_that_it_is_in(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "nodes ${SLURM_NNODES:-unknown}, $COLOUR"\n')
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("SLURM_NNODES", "1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    output = io.StringIO()
    run(["srun"], environment={"COLOUR": "red"}, output=output)
    assert output.getvalue() == "nodes unknown, red\n"


def test_output_is_passed_on_and_variables_are_set():
    output = io.StringIO()
    run([sys.executable, "-c", "import os; print(os.environ['COLOUR'])"], environment={"COLOUR": "red"}, output=output)
    assert output.getvalue() == "red\n"


def test_a_failure_tells_the_command_and_the_end_of_its_output():
    program = "import sys; [print('line', n) for n in range(100)]; sys.exit('out of memory')"
    with pytest.raises(BulwarkError, match=r"exit status 1(.|\n)*line 99\nout of memory$") as failure:
        run([sys.executable, "-c", program], output=io.StringIO())
    assert "line 20\n" not in str(failure.value)


def test_a_kill_is_told_by_name():
    with pytest.raises(BulwarkError, match="SIGKILL"):
        run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], output=io.StringIO())


def test_a_command_that_is_not_there():
    with pytest.raises(BulwarkError, match="no-such-launcher could not be started"):
        run(["no-such-launcher"], output=io.StringIO())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_caller_ends_the_whole_group(how, tmp_path):
    caller, members = _caller_with_grandchild(tmp_path)
    caller.send_signal(how)
    assert caller.wait(20) == 128 + how
    _all_end(members)


def test_killing_the_caller_kills_what_it_started(tmp_path):
    caller, members = _caller_with_grandchild(tmp_path)
    caller.kill()
    caller.wait(20)
    _all_end(members[:1])
    for left in members[1:]:  # the launcher's own children are the launcher's business
        os.kill(left, signal.SIGKILL)


def _caller_with_grandchild(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A process inside `run`, and the ids of the child that it started and of that child's child."""
    told = folder / "ids"
    child = (
        "import os, subprocess, sys, pathlib, time;"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"path = pathlib.Path({str(told)!r});"
        "path.with_suffix('.tmp').write_text(f'{os.getpid()} {grandchild.pid}');"
        "path.with_suffix('.tmp').rename(path); time.sleep(60)"
    )
    program = f"import sys; from bulwark.jobs.launch import run; run([sys.executable, '-c', {child!r}])"
    caller = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return caller, [int(number) for number in told.read_text().split()]


def _all_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(_runs(process) for process in processes):
        assert time.monotonic() < deadline, "a process outlived its caller"
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
