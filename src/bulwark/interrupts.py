"""Ending a job in order when it is told to: Ctrl-C, SIGTERM (SLURM sends it before the time limit) or SIGHUP.

A job calls `catch` when it begins. Within `resumable` the first signal is only noted; the work asks `leave_if_told`
wherever what it has done is safe, and that ends the process with a line that says what is kept. Everywhere else a
signal ends the process at once, without a traceback. A second Ctrl-C ends it at once in any case. Without `catch`, as
in a notebook, nothing of this happens: Python's KeyboardInterrupt is raised as usual.

Snakemake's own process notes that the run was told to end in a mark (see `jobs.stopping`), because a job that is just
starting sleeps through its signal. It also says so, once; a job of that run adds only what it has kept. Imports only
the standard library.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

WORKFLOW = "BULWARK_WORKFLOW"  # the workflow that jobs belong to, "PID:start time"
AGAIN = "give the same command again"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_KEYSTROKE = 1.0  # seconds within which the same Ctrl-C may arrive on two ways
_SECONDS_TO_MARK = 0.5  # within which the workflow's process has its mark there, if it was told as this one was


class Interrupted(SystemExit):
    """The job was told to end and does; its exit status is that of a process that the signal ended."""


class _State:
    """What this process has been told, and which resumable works it is in, outermost first."""

    caught: bool = False
    told: int = 0
    at: float = 0.0
    works: list[Callable[[], str] | None] = []


def catch() -> None:
    """From now on, end this process in order. Ends it at once if its workflow has been told to end already, or if it
    has been itself since it called this before: a process that does several jobs may be told while it sees one through.

    Does nothing outside the main thread, and leaves SIGHUP alone where it is ignored (nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not _State.caught:
        _State.told = 0
    _State.caught, _State.works = True, []
    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)
    if _State.told:
        leave("Stopped")
    mark = mark_of(os.environ.get(WORKFLOW, ""))
    if mark is not None and mark.exists():
        _note(signal.SIGTERM, None)


def forget() -> None:
    """Be again as before `catch`, but for the handlers of signals."""
    _State.caught, _State.told, _State.works = False, 0, []


def mark_of(workflow: str) -> Path | None:
    """The file by which a workflow's jobs see that it was told to end; None for no workflow."""
    return Path(".snakemake", f"told-to-end-{workflow.replace(':', '-')}") if workflow else None


def workflow_here() -> str:
    """What names this process as a workflow to its jobs: with its start it is one process for certain."""
    fields = Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()
    return f"{os.getpid()}:{fields[19]}"


def told() -> bool:
    """Whether this process has been told to end."""
    return bool(_State.told)


@contextmanager
def resumable(kept: Callable[[], str] | None) -> Iterator[None]:
    """Within it, a signal waits for `leave_if_told`. kept(): what is safe by then, such as "3 of 7 answers are kept".

    Works may lie within one another; then it is the outermost that counts and speaks. None: a work that looks at
    `told` and calls `leave` itself, so that nothing within it leaves.
    """
    _State.works.append(kept)
    try:
        yield
    finally:
        _State.works.pop()


def see_through() -> None:
    """What is left of this job is short and would be lost: from now on signals change nothing (but a second Ctrl-C)."""
    if _State.caught:
        _State.works.append(None)


def leaving() -> bool:
    """Whether `leave_if_told` would end this process: for a work that puts things in order before it calls that."""
    return bool(_State.told) and None not in _State.works


def leave_if_told() -> None:
    """End this process, with a line that says what is kept, if it has been told to. Call it where that is safe."""
    if leaving():
        leave(_State.works[0]() if _State.works else "Stopped")


def leave(kept: str | None, number: int = 0) -> None:
    """Say what is kept, unless another process says it (None), and end as a process that a signal ended.

    number: of the signal, where it was not this process that was told.
    """
    if kept is not None:
        log.warning("%s; %s", kept, AGAIN)
    raise Interrupted(128 + (number or _State.told or signal.SIGTERM))


def _note(number: int, _: FrameType | None) -> None:
    """The handler of the signals."""
    now = time.monotonic()
    if _State.told:
        if number == signal.SIGINT and now - _State.at > ONE_KEYSTROKE:
            _end_at_once(number)
        return
    _State.told, _State.at = number, now
    alone = not _workflow_told()
    if not _State.works:
        if alone:
            _write(f"Stopped; {AGAIN}.\n")
        raise Interrupted(128 + number)
    if alone:
        _write("Stopping at the next point where nothing is lost; Ctrl-C again stops at once.\n")


def _workflow_told() -> bool:
    """Whether the workflow of this job was told to end, too; its own process then says so."""
    mark = mark_of(os.environ.get(WORKFLOW, ""))
    end = time.monotonic() + _SECONDS_TO_MARK
    while mark is not None and not mark.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return mark is not None and mark.exists()


def _end_at_once(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _write(text: str) -> None:
    """To stderr, past its buffer: a handler may run while someone else is writing there."""
    with suppress(OSError):
        os.write(2, text.encode())
