"""A package with the warm parent and nothing heavy, a process that stands for a workflow, and jobs of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bulwark

CALLS = """
import os, random, signal, sys, time, threading
from pathlib import Path
from bulwark.errors import BulwarkError

def note(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\\n")

def succeed(path):
    note(path)
    print("on stdout")
    print("on stderr", file=sys.stderr)

def surroundings(path):
    umask = os.umask(0)
    Path(path).write_text(repr((os.getcwd(), umask, os.environ["OF_THE_JOB"], sys.argv[1:], random.random())))

def leave(path, code):
    note(path)
    sys.exit(code)

def fail(path):
    note(path)
    raise ValueError("something is wrong")

def refuse(path):
    note(path)
    raise BulwarkError("a wrong input")

def crash(path):
    note(path)
    os.kill(os.getpid(), signal.SIGSEGV)

def wait(path):
    note(path)
    time.sleep(30)

def wait_through(path):
    from bulwark import interrupts
    interrupts.see_through()
    note(path)
    time.sleep(30)

def wait_once(path):
    note(path)
    time.sleep(30 if len(Path(path).read_text().splitlines()) == 1 else 0)

def late(path):
    def work():
        time.sleep(0.3)
        print("of a thread")
    print("before", end="")
    threading.Thread(target=work).start()
"""
JOB = """
import json
from bulwark.jobs.calls import run
from bulwark.logs import log_to
call = json.loads({call!r})
log_to(call["log"])
run(**call)
"""


class Workflow:
    """A process that stands for a workflow, and the jobs that belong to it; `package` is the code they run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.package = folder / "code" / "bulwark"
        source = Path(bulwark.__file__).parent
        (self.package / "jobs").mkdir(parents=True)
        for name in (
            "__init__.py",
            "errors.py",
            "files.py",
            "interrupts.py",
            "logs.py",
            "seals.py",
            "jobs/__init__.py",
            "jobs/calls.py",
            "jobs/devices.py",
            "jobs/process.py",
            "jobs/sealing.py",
            "jobs/warm.py",
        ):
            shutil.copy(source / name, self.package / name)
        (self.package / "samples.py").write_text(CALLS)
        for name in ("torch", "transformers"):  # in place of the real ones, which take seconds
            (folder / "code" / name).mkdir()
            (folder / "code" / name / "__init__.py").touch()
        # What `offer` leaves in the environment of a process, in which jobs are then started.
        program = "import os, time; from bulwark.jobs import warm; warm.offer(True)\n"
        program += "print(os.environ[warm.VARIABLE], flush=True)\ntime.sleep(600)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], env=self.environment(), stdout=subprocess.PIPE, text=True
        )
        self.offer = {"BULWARK_WORKFLOW": self.process.stdout.readline().strip()}

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("SLURM_JOB_ID", "BULWARK_WORKFLOW")}
        here = {"PYTHONPATH": str(self.folder / "code"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**kept, **here, **more}

    def job(self, function: str, *, warm: bool = True, options: Mapping[str, Any] | None = None, **more: Any):
        """Start a job that calls a function of `samples` with the path of its notes and further arguments."""
        import json

        environment = more.pop("environment", {})
        place = more.pop("cwd", self.folder)
        call = {
            "function": f"bulwark.samples.{function}",
            "arguments": {"path": str(self.folder / "notes"), **more},
            "log": str(self.folder / "job.log"),
            **(options or {}),
        }
        return subprocess.Popen(
            [sys.executable, "-c", JOB.format(call=json.dumps(call)), "an argument"],
            env=self.environment(**(self.offer if warm else {}), **environment),
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def notes(self) -> list[tuple[int, int]]:
        """(process, its parent) of every call so far."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(process), int(parent)) for process, parent in map(str.split, lines)]

    def noted(self, count: int = 1) -> tuple[int, int]:
        """Wait for that many notes; return the last."""
        until(lambda: len(self.notes()) >= count)
        return self.notes()[-1]

    def parents(self) -> list[int]:
        """The warm parents of this workflow, and their children."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes()
                state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if b"bulwark.jobs.warm" in line and self.offer["BULWARK_WORKFLOW"].encode() in line and state != "Z":
                found.append(int(path.name))
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true; an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def workflow_in(folder: Path) -> Iterator[Workflow]:
    """The body of a fixture: a workflow that has ended, with everything of it, afterwards."""
    workflow = Workflow(folder)
    yield workflow
    workflow.end()
    until(lambda: not workflow.parents())
