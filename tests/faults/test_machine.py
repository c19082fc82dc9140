"""What a machine does to a job: kills, a full disk, a folder that may not be written, two runs at once.

Each job runs in a forked child, between the verification of its inputs and the sealing of its outputs, as in the
workflow. Afterwards the same job is done again, and has to make what was there before.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulwark import seals
from bulwark.benchmarks import benchmark_of
from bulwark.errors import BulwarkError
from bulwark.files import digest
from bulwark.jobs.job import Job
from bulwark.jobs.process import perform
from bulwark.jobs.sealing import Sealing
from bulwark.jobs.warm import HEAVY
from bulwark.models import manifests

CELL = "miniature/aside/seed0"
TOLD, TRACEBACK = 3, 4  # exit statuses of a child


@dataclass(frozen=True)
class Work:
    """A job as a call, and the file by which what it made is compared."""

    function: str
    arguments: dict[str, Any]
    sealing: Sealing
    compared: str

    def do(self) -> None:
        perform(self.function, self.arguments, self.sealing)


def works() -> dict[str, Work]:
    """Jobs of three kinds as the finished run did them, from what their results say of themselves."""
    scores, answers = f"results/scores/{CELL}/sep.json", f"results/answers/{CELL}/sep.jsonl"
    provenance = answers.replace(".jsonl", ".provenance.json")
    told = json.loads(Path(scores).read_text(encoding="utf-8"))
    benchmark = benchmark_of(told["provenance"]["module"], told["provenance"]["settings"])
    manifest = f"results/checkpoints/{CELL}/checkpoint.json"
    records = next(path for path in seals.read(answers).inputs if path.startswith("results/data/"))
    step = manifests.read_manifest(manifest)
    job = Job(
        kind=step["kind"],
        settings=step["settings"],
        parent=step["parent"]["path"],
        output=manifest,
        inputs={name: entry["path"] for name, entry in step["inputs"].items()},
        identity={key: step[key] for key in ("model", "recipe", "seed")},
        log="job.log",
    )
    identity = {key: told[key] for key in ("benchmark", "model", "recipe", "seed")}
    return {
        "score_answers": Work(
            "bulwark.evaluation.score.score_file",
            {"answers": Path(answers), "records": Path(records), "benchmark": benchmark, "identity": identity}
            | {"provenance": Path(provenance), "scores": Path(scores)},
            sealing_of(scores, scores.replace(".json", ".records.jsonl")),
            scores,
        ),
        "generate_answers": Work(
            "bulwark.evaluation.answer.answer",
            {"checkpoint": Path(manifest), "records": Path(records), "benchmark": benchmark, "seed": 0}
            | {"dtype": "float32", "threads": 1, "answers": Path(answers), "provenance": Path(provenance)},
            sealing_of(answers, provenance),
            answers,
        ),
        "apply_step": Work(
            "bulwark.steps.perform",
            {"job": job},
            sealing_of(manifest),
            manifest.replace("checkpoint.json", "model.safetensors"),
        ),
    }


def sealing_of(*outputs: str) -> Sealing:
    known = seals.read(outputs[0])
    return Sealing(tuple(known.inputs), outputs, known.asked, known.rule)


@pytest.fixture
def place(inside, tmp_path, monkeypatch) -> Path:
    """What these jobs read and make, in a folder of its own."""
    for name in ("models/miniature", "data", f"answers/{CELL}", f"scores/{CELL}", f"checkpoints/{CELL}"):
        shutil.copytree(inside / "results" / name, tmp_path / "results" / name)
    base = "checkpoints/miniature/base/seed0"
    shutil.copytree(inside / "results" / base, tmp_path / "results" / base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def child(action: Callable[[], None]) -> tuple[int, int]:
    """Start an action in a forked child; its process, and a descriptor from which its error can be read."""
    for name in ("torch", *HEAVY):  # once, here, instead of in every child
        importlib.import_module(name)

    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    status = 0
    try:
        action()
    except BulwarkError as error:
        os.write(writes, str(error).encode())
        status = TOLD
    except BaseException as error:
        os.write(writes, f"{type(error).__name__}: {error}\n{traceback.format_exc()}".encode()[-4000:])
        status = TRACEBACK
    os._exit(status)


def ended(started: tuple[int, int]) -> tuple[int, str]:
    """Exit status (negative: a signal) and error of a child."""
    pid, reads = started
    with os.fdopen(reads, "rb") as file:
        said = file.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def wrong(work: Work) -> str | None:
    """What is wrong with what a job made; None for whole and sealed."""
    try:
        for output in work.sealing.outputs:
            seals.verify(output, in_place=True)
    except BulwarkError as error:
        return str(error)
    return None


def made_here(work: Work) -> str:
    """The digest of what the job makes in this process: jobs of the workflow may round otherwise (common.smk)."""
    Path(work.sealing.outputs[0]).unlink()
    status, said = ended(child(work.do))
    assert status == 0, said
    return digest(Path(work.compared))


def again(work: Work, right: str) -> bool:
    """Whether the job, done again, makes what was there before."""
    status, said = ended(child(work.do))
    assert status == 0, said
    return wrong(work) is None and digest(Path(work.compared)) == right


KINDS = ("score_answers", "generate_answers", "apply_step")


@pytest.mark.parametrize("kind", KINDS)
def test_kills(place, drawn, faults, tally, kind):
    work = works()[kind]
    right = made_here(work)
    started = time.monotonic()
    assert again(work, right)
    seconds = time.monotonic() - started
    for number in range(max(2, faults // 20)):
        process = child(work.do)
        time.sleep(drawn.uniform(0, seconds))
        os.kill(process[0], signal.SIGKILL)
        status, _ = ended(process)
        unfinished = wrong(work)
        if status == 0 or unfinished is None:  # it had ended
            assert digest(Path(work.compared)) == right
            continue
        said = f"{unfinished}" if again(work, right) else None
        tally.note("mended", f"{kind} killed, {number}", said, list(work.sealing.outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_full_disks(place, drawn, faults, tally, kind):
    """No file can grow beyond a size, which is what a full disk or a quota looks like to a process."""
    work = works()[kind]
    right, largest = made_here(work), Path(work.compared).stat().st_size

    def limited(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work.do()

    for number in range(max(2, faults // 10)):
        size = drawn.randrange(largest)
        status, said = ended(child(lambda size=size: limited(size)))
        if status == 0:
            assert digest(Path(work.compared)) == right
            continue
        fault = f"{kind}, no room beyond {size} bytes, {number}"
        assert again(work, right), fault
        tally.note("told", fault, said, [*work.sealing.outputs, "results/"])


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_may_not_be_written(place, tally, kind):
    work = works()[kind]
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own, nobody else may enter
        shutil.copytree(place / "results", f"{folder}/results")
        os.chmod(folder, 0o755)

        def as_nobody() -> None:
            os.chdir(folder)
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work.do()

        for path in Path(folder).rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        status, said = ended(child(as_nobody))
        for path in Path(folder).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert status
    tally.note("told", f"{kind} in a read-only folder", said, [*work.sealing.outputs, "results/"])


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_at_once(place, drawn, tally, kind):
    """Snakemake locks its folder against this; where the lock was taken away, nothing wrong is taken for right."""
    work = works()[kind]
    right = made_here(work)
    for number in range(2):
        both = [child(work.do)]
        time.sleep(drawn.uniform(0, 0.05))
        both.append(child(work.do))
        ends = [ended(one) for one in both]
        fault = f"{kind} twice at once, {number}"
        for status, said in ends:
            if status:
                tally.note("told", fault, said, [*work.sealing.outputs, "results/"])
        if wrong(work) is None:
            assert digest(Path(work.compared)) == right
            tally.note("mended", fault, f"{work.compared}: made again", [work.compared])
        else:
            tally.note("told", fault, wrong(work), list(work.sealing.outputs))
        assert again(work, right)
