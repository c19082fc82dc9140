"""What Snakemake's own process does when it is told to end: it lets the jobs of this machine save, and says so.

Ctrl-C reaches Snakemake and, by the terminal, all its jobs; SIGTERM reaches Snakemake alone, which would then wait
for its jobs to finish. Either way `watch` marks the workflow as told to end and passes the signal on to every job that
handles it. Meanwhile Snakemake would report each job that ends like this as a failure, with its whole log, and say
again and again that the run ends; `Quiet` leaves that out. Standard library only, and no Snakemake.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bulwark import interrupts

# A job's shell is to wait for the job, whatever is sent to both; and a job that is just starting does not end with a
# traceback, but sees the mark as soon as it can.
SHELL_PREFIX = "trap '' INT TERM; set -euo pipefail; "
FIRST_LINE = "Told to end: the running jobs save what they have, and no others start; Ctrl-C again ends them at once."
LAST_LINE = f"Stopped. What was saved is used when you {interrupts.AGAIN}."
KILLED_LINE = (
    "A job was killed (SIGKILL), most often because memory ran out: give its stage more `mem_gb` (config/models/), or "
    f"run fewer jobs at once (-c). What was saved is used when you {interrupts.AGAIN}."
)
_KILLED = f"died with {signal.SIGKILL!r}"  # as subprocess says it
# What Snakemake says of the end, some of it each time that a job ends.
_SAID_ALREADY = ("Will exit after finishing", "Terminating processes on user", "Shutting down", "Exiting because a job")


class Quiet(logging.Filter):
    """Leaves out, once the workflow was told to end, what is reported of the end and of jobs that ended with it."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def filter(self, record: logging.LogRecord) -> bool:
        event = getattr(getattr(record, "event", None), "name", "")
        of_the_end = event in ("ERROR", "JOB_ERROR", "GROUP_ERROR") or record.getMessage().startswith(_SAID_ALREADY)
        return not (of_the_end and self.mark.exists())


def watch(logger: logging.Logger) -> None:
    """Handle SIGINT and SIGTERM in Snakemake's process from now on, before its own handlers.

    The second time these are not called: the jobs then end at once, and Snakemake only waits for them. Where Ctrl-C is
    ignored (a run in the background of a shell script), SIGINT ends the run as SIGTERM does: its jobs end by it, and
    with --keep-going Snakemake would start all others, to no end.
    """
    mark = interrupts.mark_of(interrupts.workflow_here())
    mark.unlink(missing_ok=True)
    atexit.register(mark.unlink, missing_ok=True)

    def handle(number: int, frame: FrameType | None) -> None:
        first = not mark.exists()
        with suppress(OSError):
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
        if first:
            logger.warning(FIRST_LINE)
        _tell(number)
        times[number] += 1
        if times[number] == 2:
            return
        if number == signal.SIGINT and callable(before[number]):
            before[number](number, frame)
        elif callable(before[signal.SIGTERM]):
            # It waits for a lock, which this thread may hold at this moment.
            threading.Thread(target=before[signal.SIGTERM], args=(number, frame), daemon=True).start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    times = dict.fromkeys(before, 0)
    for number in before:
        signal.signal(number, handle)
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):  # .snakemake/log/ keeps everything
            handler.addFilter(Quiet(mark))


def pass_on(scheduler: Any) -> None:
    """Have the Snakemake that SLURM starts for a job tell the job that it was told to end.

    SLURM's signal before a time limit reaches the process that it has started itself, on most clusters no other
    (proctrack/cgroup); that is Snakemake, which would only wait. scheduler: Snakemake's class JobScheduler, which has
    not handled signals yet.
    """
    wait = scheduler.exit_gracefully

    def told(self: Any, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        _tell(number)
        threading.Thread(target=wait, args=(self, number, frame), daemon=True).start()  # for a lock, as in `watch`

    scheduler.exit_gracefully = told


def _tell(number: int) -> None:
    for job in jobs_that_handle(number):
        with suppress(OSError):  # it has ended meanwhile
            os.kill(job, number)


def ended(logger: logging.Logger, logs: Sequence[str] = ()) -> None:
    """The workflow has ended without success: say how it goes on, if it was told to end, or a job was killed.

    logs: the files that keep what was said of the jobs.
    """
    if interrupts.mark_of(interrupts.workflow_here()).exists():
        logger.warning(LAST_LINE)
    elif any(_KILLED in Path(log).read_text(encoding="utf-8", errors="replace") for log in logs if Path(log).is_file()):
        logger.warning(KILLED_LINE)


def jobs_that_handle(number: int) -> list[int]:
    """The processes below this one that have a handler for the signal: jobs in Python, but not their shells."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    below = [os.getpid()]
    for process in below:
        below += parents.get(process, [])
    return [process for process in below[1:] if _handles(process, number)]


def _handles(process: int, number: int) -> bool:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in text.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
