"""Ending in order: what a signal does to a process, by itself and within works that can be resumed."""

from __future__ import annotations

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


def test_who_has_not_asked_for_it_gets_what_python_does():
    with interrupts.resumable(lambda: "5 answers"), pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)
    interrupts.leave_if_told()


@pytest.mark.parametrize(("pause", "ends"), [(0.0, False), (1.3, True)])
def test_only_a_second_keystroke_ends_it_at_once(pause, ends):
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
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
