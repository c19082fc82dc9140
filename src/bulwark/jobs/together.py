"""Several trainings of one parent in one job: one start of processes, which do them one after another.

A finished training is a checkpoint with its own manifest and seal, as if a job of its own had made it, so a job that is
killed and started again only does what is left, and goes on with the one that was under way. A training that fails
takes the processes with it, because their memory and their communication may be in any state; others are started for
those that are left. Imports nothing heavy: this process only waits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bulwark import files, seals
from bulwark.errors import BulwarkError
from bulwark.jobs import launch
from bulwark.jobs.job import Job
from bulwark.jobs.sealing import Sealing

log = logging.getLogger(__name__)

MODULE = "bulwark.steps"  # what the processes run


@dataclass(frozen=True)
class Part:
    """One of the trainings: its job, and what its checkpoint is sealed with."""

    job: Job
    sealing: Sealing

    @property
    def recipe(self) -> str:
        return str(self.job.identity["recipe"])

    def is_done(self) -> bool:
        """Whether its checkpoint is there, made as is asked now, from what its inputs hold now."""
        try:
            seal = seals.read(self.job.output)
            if seal is None or seal.asked != self.sealing.asked or seals.damage(self.job.output):
                return False
            read = self.sealing.inputs
            now = {path: (seals.content if seals.is_result(path) else seals.own_content)(path) for path in read}
        except BulwarkError:  # of what cannot be read; the training will say so
            return False
        return now == seal.inputs


@dataclass(frozen=True)
class Together:
    """What the processes are told, as a file: what to train, in this order, and the threads of a single process."""

    parts: tuple[Part, ...]
    threads: int = 1

    def write(self, path: Path) -> None:
        files.write_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Together | None:
        """None for a file that describes a single job."""
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "parts" not in told:
            return None
        parts = [Part(Job(**part["job"]), _sealing(part["sealing"])) for part in told["parts"]]
        return cls(tuple(parts), told["threads"])


def _sealing(told: dict[str, Any]) -> Sealing:
    return Sealing(**{**told, "inputs": tuple(told["inputs"]), "outputs": tuple(told["outputs"])})


def begun_file(description: Path) -> Path:
    """Where the processes say which training they have begun last, by its recipe."""
    return description.with_suffix(".begun")


def failed_file(description: Path) -> Path:
    """Where they say why it failed, if they can."""
    return description.with_suffix(".failed")


def perform(parts: Sequence[Part], record: Path, gpus: int = 0, nodes: int = 1, threads: int = 1) -> None:
    """Make the checkpoints of `parts` that are not there yet, and write to `record` which are, and why others are not.

    gpus: processes per node. Raises BulwarkError if the processes end before they begin a training, or if not one of
    the trainings has come to its end.
    """
    record = Path(record)
    failed: dict[str, str] = {}
    left = [part for part in parts if not part.is_done()]
    if len(left) < len(parts):
        log.info("%d of %d trainings are finished already.", len(parts) - len(left), len(parts))
    while left:
        error = _run(left, record.with_suffix(".job.json"), gpus, nodes, threads)
        if error is not None:
            recipe, reason = error
            failed[recipe] = reason
            log.error("%s failed: %s", recipe, reason)
        left = [part for part in left if part.recipe not in failed and not part.is_done()]
    if len(failed) == len(parts):
        reasons = "".join(f"\n  {recipe}: {reason}" for recipe, reason in failed.items())
        raise BulwarkError(f"None of the trainings that share this job came to its end:{reasons}")
    made = [part.recipe for part in parts if part.recipe not in failed]
    files.write_text(record, json.dumps({"made": made, "failed": failed}, indent=1, ensure_ascii=False) + "\n")


def refuse_failed(output: Path, asked: str, record: Path) -> None:
    """Raise BulwarkError, with its reason, if the training behind `output` failed in the job that it shared."""
    recipe = Path(output).parents[1].name
    failed = json.loads(Path(record).read_text(encoding="utf-8"))["failed"]
    # Of one that failed early the checkpoint of an earlier run may be there, made from other inputs.
    seal = None if recipe in failed else seals.read(output)
    if seal is not None and seal.asked == asked:
        return
    reason = failed.get(recipe, f"{record} does not say why; give the same command again")
    raise BulwarkError(f"{output}: its training failed; the others of its job went on. {reason}")


def _run(left: Sequence[Part], description: Path, gpus: int, nodes: int, threads: int) -> tuple[str, str] | None:
    """Let processes do what is left; the recipe of the training that failed, and why, or None if none did.

    Of a trial that diverges the checkpoint says so; with it the processes end, and others are needed for what is left.
    Raises BulwarkError if the processes fail outside of a training, or end and have made no checkpoint.
    """
    stop, begun, failed = launch.stop_file(description), begun_file(description), failed_file(description)
    Together(tuple(left), threads).write(description)
    for file in (stop, begun, failed):
        file.unlink(missing_ok=True)
    try:
        launch.run(launch.launch_line(MODULE, str(description), gpus=gpus, nodes=nodes), stop=stop)
    except BulwarkError as error:
        recipe = begun.read_text(encoding="utf-8") if begun.exists() else None
        if recipe is None or any(part.recipe == recipe and part.is_done() for part in left):  # not within a training
            raise
        reason = failed.read_text(encoding="utf-8") if failed.exists() else str(error)
        return recipe, reason
    finally:
        for file in (description, stop, begun, failed):
            file.unlink(missing_ok=True)
    if not any(part.is_done() for part in left):
        raise BulwarkError(f"{left[0].job.output}: its training ended, and yet it is not what was asked for.")
    return None
