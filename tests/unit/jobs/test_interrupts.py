"""Ending in order: what a signal does to a process, by itself and within works that can be resumed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from interrupt_samples import SIGNALS, caught

from bulwark import interrupts
from bulwark.interrupts import Interrupted
from bulwark.jobs import stopping

WAITS = """
import sys, time
from bulwark import interrupts
interrupts.catch()
with interrupts.resumable(lambda: "3 of 7"):
    print("ready", flush=True)
    time.sleep(30)
"""


SAVES = """
import time
from bulwark import interrupts
interrupts.catch()
with interrupts.resumable(lambda: "3 of 7"):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        interrupts.leave_if_told()
"""
# Snakemake's process within a job of SLURM, whose scheduler only waits for the job when it is told to end.
WORKFLOW_IN_A_JOB = """
import signal, subprocess, sys
from bulwark.jobs import stopping
class Scheduler:
    def __init__(self):
        signal.signal(signal.SIGTERM, self.exit_gracefully)
    def exit_gracefully(self, *args):
        print("waits", flush=True)
stopping.pass_on(Scheduler)
scheduler = Scheduler()
job = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print("the job ended with", job.wait(), flush=True)
"""
# Snakemake's process, whose scheduler holds its lock at the moment of the signal.
WORKFLOW_ENDS = """
import logging, signal, sys, threading, time
from bulwark import interrupts
from bulwark.jobs import stopping
lock, gracefully = threading.Lock(), threading.Event()
def exit_gracefully(number, frame):
    with lock:
        gracefully.set()
signal.signal(signal.SIGTERM, exit_gracefully)
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
logger = logging.getLogger("snakemake")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
stopping.watch(logger)
logger.info("Will exit after finishing currently running jobs (scheduler).")
try:
    print("ready", flush=True)
    with lock:
        while not interrupts.mark_of(interrupts.workflow_here()).exists():
            time.sleep(0.01)
        time.sleep(0.2)
    if gracefully.wait(10):
        print("gracefully")
except KeyboardInterrupt:
    print("interrupted")
for _ in range(3):
    logger.info("Will exit after finishing currently running jobs (scheduler).")
stopping.ended(logger)
"""
COMMAND = """
import sys, time
from bulwark import cli
cli._show = lambda options: (print("ready", flush=True), time.sleep(30))
sys.argv[1:] = ["show"]
sys.exit(cli.main())
"""


def started(program: str, *arguments: str, **options) -> subprocess.Popen:
    """A process that runs `program` and is ready to be told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    line = process.stdout.readline()
    while line not in ("ready\n", ""):
        line = process.stdout.readline()
    return process


def tell(number: int) -> None:
    """Send this process a signal, whose handler runs before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_without_a_work_the_process_ends_at_once(number):
    with caught(), pytest.raises(Interrupted) as ended:
        tell(number)
    assert ended.value.code == 128 + number


def test_a_work_goes_on_until_it_asks_and_the_outermost_speaks(caplog):
    with caught(), interrupts.resumable(lambda: "2 trials"):
        tell(signal.SIGTERM)
        assert interrupts.told()
        with interrupts.resumable(lambda: "5 answers"), pytest.raises(Interrupted):
            interrupts.leave_if_told()
    assert caplog.messages == ["2 trials; give the same command again"]


def test_what_is_within_a_training_does_not_leave_it():
    with caught(), interrupts.resumable(None), interrupts.resumable(lambda: "5 answers"):
        tell(signal.SIGTERM)
        interrupts.leave_if_told()


def test_what_is_nearly_done_is_seen_through():
    with caught():
        interrupts.see_through()
        tell(signal.SIGTERM)
        interrupts.leave_if_told()


def test_who_is_told_while_one_job_is_seen_through_ends_where_the_next_begins(caplog):
    """A process that does several jobs calls `catch` for each."""
    with caught():
        interrupts.see_through()
        tell(signal.SIGTERM)
        with pytest.raises(Interrupted) as ended:
            interrupts.catch()
        assert ended.value.code == 128 + signal.SIGTERM
    assert caplog.messages == ["Stopped; give the same command again"]
    with caught():  # it is over with that
        assert not interrupts.told()


def test_who_has_not_asked_for_it_gets_what_python_does():
    with interrupts.resumable(lambda: "5 answers"), pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)
    interrupts.leave_if_told()


@pytest.mark.parametrize(("pause", "ends"), [(0.0, False), (1.3, True)])
def test_only_a_second_keystroke_ends_it_at_once(pause, ends):
    process = started(WAITS)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2 + pause)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(3) == -signal.SIGINT
        assert ends
    except subprocess.TimeoutExpired:
        assert not ends
    finally:
        process.kill()
    assert "Ctrl-C again stops at once" in process.stderr.read()


@pytest.mark.parametrize("told", ["alone", "before", "a little later"])
def test_a_job_says_that_it_ends_only_where_its_workflow_does_not(told, tmp_path):
    mark = tmp_path / interrupts.mark_of("7:7")
    mark.parent.mkdir()
    process = started(SAVES, cwd=tmp_path, env={**os.environ, interrupts.WORKFLOW: "7:7"})
    if told == "before":
        mark.touch()
    process.send_signal(signal.SIGINT)
    if told == "a little later":
        time.sleep(0.1)
        mark.touch()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    begins = ["Stopping at the next point where nothing is lost; Ctrl-C again stops at once."] * (told == "alone")
    assert said.splitlines() == [*begins, "3 of 7; give the same command again"]


@pytest.mark.parametrize(
    ("number", "ctrl_c", "ends"),
    [
        (signal.SIGINT, "heeded", "interrupted"),
        (signal.SIGINT, "ignored", "gracefully"),  # as in the background of a shell script
        (signal.SIGTERM, "heeded", "gracefully"),
    ],
)
def test_a_workflow_says_once_that_it_ends_and_does(number, ctrl_c, ends, tmp_path):
    process = started(WORKFLOW_ENDS, ctrl_c, cwd=tmp_path)
    process.send_signal(number)
    try:
        said, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert errors == ""
    assert said.splitlines() == [stopping.FIRST_LINE, ends, stopping.LAST_LINE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_the_signals_status_and_no_traceback(number):
    process = started(COMMAND)
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "Stopped; give the same command again.\n")
    assert process.returncode == 128 + number


def test_jobs_that_handle_a_signal_are_told_from_their_shells():
    shell = subprocess.Popen(
        ["bash", "-c", f"{stopping.SHELL_PREFIX} {sys.executable} -c '{WAITS}'; true"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert shell.stdout.readline() == "ready\n"
        (job,) = [process for process in stopping.jobs_that_handle(signal.SIGTERM) if process != os.getpid()]
        assert job != shell.pid
        os.kill(shell.pid, signal.SIGTERM)
        os.kill(job, signal.SIGTERM)
        time.sleep(0.3)
        assert shell.poll() is None  # it waits for the job, which waits for a good moment
    finally:
        os.kill(job, signal.SIGKILL)
        shell.wait(10)


@pytest.mark.parametrize("killed", [True, False])
def test_a_job_that_was_killed_is_told_with_what_to_do(tmp_path, monkeypatch, caplog, killed):
    monkeypatch.setattr(interrupts, "mark_of", lambda workflow: tmp_path / "no mark")
    command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), 9) if {killed} else exit(1)"]
    with pytest.raises(subprocess.CalledProcessError) as ended:
        subprocess.run(command, check=True)
    (tmp_path / "log").write_text(f"CalledProcessError: {ended.value}", encoding="utf-8")
    stopping.ended(logging.getLogger("test"), [str(tmp_path / "log"), str(tmp_path / "none")])
    assert ("mem_gb" in caplog.text) == killed


def test_snakemake_in_a_job_of_slurm_passes_on_what_only_it_is_told():
    process = subprocess.Popen([sys.executable, "-c", WORKFLOW_IN_A_JOB, SAVES], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert sorted(printed.splitlines()) == ["the job ended with 143", "waits"]
