"""Start a module as one process per GPU: the command lines, and running one so that nothing of it outlives its caller.

One process needs no launcher. Several on one node are started by torchrun (see `ranks`; `--standalone` finds a free
port); several nodes by one torchrun per node, which `srun` places inside the job's SLURM allocation: a step of its own
over the nodes of the job, because the one that this process runs in has one node.
Torch-free, so that a workflow script can import it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from bulwark import interrupts
from bulwark.errors import BulwarkError
from bulwark.jobs import slurm
from bulwark.jobs.process import die_with_parent

_SRUN = "srun"
_LINES_KEPT = 40
_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5
_FIRST_PORT, _PORTS = 20000, 12000  # below those that Linux gives away


def launch_line(
    module: str,
    argument: str,
    gpus: int,
    nodes: int = 1,
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    scontrol: Callable[..., str] = slurm.scontrol,
) -> list[str]:
    """The command that runs `python -m module argument` once per GPU.

    gpus: processes per node; 0 and 1 both mean one. environment: where SLURM's variables are looked up, by default
    this process's. scontrol: asked for the job's nodes.

    Raises BulwarkError for several nodes without a SLURM allocation that has them.
    """
    processes = max(1, gpus)
    if nodes <= 1:
        if processes == 1:
            return [python, "-m", module, argument]
        return [*_torchrun(python), "--standalone", f"--nproc-per-node={processes}", "-m", module, argument]
    environment = os.environ if environment is None else environment
    given = slurm.allocation(environment, nodes, scontrol)
    port = _FIRST_PORT + int(given.job) % _PORTS  # jobs that share a node have different numbers
    cpus = environment.get("SLURM_CPUS_PER_TASK")
    return [
        # The workflow's own step already holds the allocation, so this one has to overlap it.
        *[_SRUN, f"--jobid={given.job}", "--overlap", f"--nodelist={','.join(given.nodes)}"],
        *[f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"],
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        "--kill-on-bad-exit=1",
        *[*_torchrun(python), f"--nnodes={nodes}", f"--nproc-per-node={processes}"],
        *[f"--master-addr={given.address}", f"--master-port={port}", "-m", module, argument],
    ]


def run(
    line: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: TextIO | None = None,
    stop: Path | None = None,
) -> None:
    """Run `line` to its end, passing its output on line by line to `output` (by default stderr).

    environment: variables added to this process's. If this process is told to end (SIGTERM, SIGINT, SIGHUP), the
    whole process group of `line` is ended first; if it is killed, `line` is killed with it.
    stop: a file that the processes of `line` watch (see `watch`): it appears when this process is told to end for the
    first time, and the processes are waited for.

    Raises BulwarkError with the last lines of the output if the command cannot be started or fails, and Interrupted if
    this process was told to end.
    """
    output = output or sys.stderr
    last: deque[str] = deque(maxlen=_LINES_KEPT)
    try:
        process = subprocess.Popen(
            list(line),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**_inherited(line), **(environment or {})},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise BulwarkError(f"{line[0]} could not be started: {error}. The command was: {shlex.join(line)}") from error
    with _ended_with_us(process, stop) as told:
        for text in process.stdout:
            last.append(text)
            if not told or " bulwark." in text:  # torchrun would report as failures what ends because it was told to
                output.write(text)
                output.flush()
        status = process.wait()
    if told:
        interrupts.leave(None, told[0])
    if status:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"
        raise BulwarkError(
            f"The command {how}: {shlex.join(line)}\nThe last lines of its output:\n{''.join(last).rstrip()}"
        )


def _inherited(line: Sequence[str]) -> Mapping[str, str]:
    return slurm.outside_step(os.environ) if line[0] == _SRUN else os.environ


def _torchrun(python: str) -> list[str]:
    return [python, "-m", "bulwark.jobs.ranks"]


def stop_file(description: Path) -> Path:
    """The file that tells the processes of a described job to end."""
    return description.with_suffix(".stop")


def watch(stop: Path) -> None:
    """Tell this process to end, by a signal, as soon as the file `stop` is there."""

    def look() -> None:
        while not stop.exists():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def _ended_with_us(process: subprocess.Popen, file: Path | None) -> Iterator[list[int]]:
    """While within, a signal that ends this process ends the group of `process`; so does leaving by an exception.

    With a `file` the first signal only makes it, and is noted in the list that is given.
    """
    told: list[int] = []
    since = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal since
        if file is None:
            _end_group(process)
            raise SystemExit(128 + number)
        if not told:
            told.append(number)
            since = time.monotonic()
            file.touch()
        elif number == signal.SIGINT and time.monotonic() - since > interrupts.ONE_KEYSTROKE:
            _end_group(process)
            raise SystemExit(128 + number)

    ending = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    in_main_thread = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    before = {number: signal.signal(number, stop) for number in ending} if in_main_thread else {}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end_group(process)
        process.stdout.close()


def _end_group(process: subprocess.Popen) -> None:
    """Ask every process of the group to end, and kill those that have not after ten seconds."""
    for number in (signal.SIGUSR1, signal.SIGKILL):  # the first is what `ranks` ends by
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # all gone
            return
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue
