"""The state of an unfinished training, from which a killed run resumes as if nothing had happened.

    state/fingerprint.json       what the training is: settings, digests, number of processes, library versions
    state/step-000123/           written as step-000123.tmp, synced, then renamed: it is whole or it is not there
        engine/                  model, optimizer and schedule, by DeepSpeed, each rank its part
        process-0.pt             per rank: random number generators, the state of objective and observers
        position.json            the losses so far, the best step, the clock
        complete.json            the names and sizes of all files above
    state/best-000100.pt         weights of the lowest evaluation loss, if they are to be kept
    state/lock                   held by the process that trains

State with another fingerprint is deleted, never resumed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bulwark.errors import BulwarkError
from bulwark.files import write_text
from bulwark.training.engine import Processes, gather_weights

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.training.observers import Observer

log = logging.getLogger(__name__)


class TrainingState:
    """The folder of one training's state. All ranks call every method; the main process does what concerns all.

    fingerprint: plain data (JSON) that says which training this is. partial: only the trainable weights are
    written, for adapters, because the frozen ones come with the parent. `close` lets the folder go.

    Raises BulwarkError if another process is training into the folder.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], processes: Processes, partial: bool = False) -> None:
        self.folder, self.processes, self.partial = Path(folder), processes, partial
        self._lock = None
        if processes.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder / "lock")
            self._claim(json.loads(json.dumps(fingerprint, default=str)))
        _wait()

    def close(self) -> None:
        """Let another process have the folder; its content stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def latest(self) -> Path | None:
        """The newest complete state, or None."""
        complete = [path for path in self.folder.glob("step-*") if _is_complete(path)]
        return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)

    def save(self, engine: DeepSpeedEngine, parts: Sequence[Observer], position: dict[str, Any]) -> None:
        """Write the state after `position["step"]` optimizer steps, then remove the older ones.

        parts: the objective and the observers, each with a state of its own.
        """
        final = self.folder / f"step-{position['step']:06d}"
        unfinished = final.with_suffix(".tmp")
        if self.processes.main:
            for stale in (unfinished, final):
                shutil.rmtree(stale, ignore_errors=True)
            unfinished.mkdir(parents=True)
        _wait()
        engine.save_checkpoint(str(unfinished), tag="engine", save_latest=False, exclude_frozen_parameters=self.partial)
        own = {"random": _random_state(), "parts": [part.state_dict() for part in parts]}
        torch.save(own, unfinished / f"process-{self.processes.rank}.pt")
        _sync(unfinished / f"process-{self.processes.rank}.pt")
        _wait()
        if self.processes.main:
            _write_json(unfinished / "position.json", position)
            files = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
            sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in files}
            _write_json(unfinished / "complete.json", sizes)
            for path in [*unfinished.rglob("*"), unfinished]:
                _sync(path)
            os.replace(unfinished, final)
            _sync(self.folder)
            self._remove_all_but(final, position.get("best_step"))
        _wait()

    def load(self, engine: DeepSpeedEngine, parts: Sequence[Observer]) -> dict[str, Any] | None:
        """Put engine, parts and random numbers back to the newest complete state; return its position or None."""
        latest = self.latest()
        if latest is None:
            return None
        loaded, _ = engine.load_checkpoint(str(latest), tag="engine", load_module_strict=not self.partial)
        if loaded is None:
            raise FileNotFoundError(f"{latest / 'engine'} could not be read; delete {latest} to start afresh.")
        # The project's own file; it holds the states of Python's and NumPy's generators, which are no tensors.
        own = torch.load(latest / f"process-{self.processes.rank}.pt", map_location="cpu", weights_only=False)
        for part, state in zip(parts, own["parts"], strict=True):
            part.load_state_dict(state)
        _set_random_state(own["random"])
        position = json.loads((latest / "position.json").read_text(encoding="utf-8"))
        if self.processes.main:
            log.info("Resuming after step %d from %s.", position["step"], latest)
        return position

    def keep_best(self, engine: DeepSpeedEngine, step: int) -> None:
        """Write the present weights as those of the lowest evaluation loss so far."""
        weights = gather_weights(engine, trainable_only=True)
        if weights is not None:
            # The former best stays until a state that no longer names it has been saved.
            target = self._best(step)
            unfinished = target.with_suffix(".tmp")
            torch.save(weights, unfinished)
            _sync(unfinished)
            os.replace(unfinished, target)
            _sync(self.folder)

    def best_weights(self, step: int) -> dict[str, Tensor]:
        """What `keep_best` wrote at `step`."""
        return torch.load(self._best(step), map_location="cpu", weights_only=True)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:06d}.pt"

    def _claim(self, fingerprint: dict[str, Any]) -> None:
        """Make the folder this training's: remove what is unfinished, and everything if another training left it."""
        record = self.folder / "fingerprint.json"
        difference = _difference(record, fingerprint)
        for path in self.folder.iterdir():
            ours = path.name.startswith(("step-", "best-", "fingerprint"))
            if ours and (difference or path.suffix == ".tmp" or (path.is_dir() and not _is_complete(path))):
                if difference and path.is_dir():
                    log.warning("Deleting %s: it belongs to another training (%s).", path, difference)
                _remove(path)
        if difference:
            write_text(record, json.dumps(fingerprint, indent=1))

    def _remove_all_but(self, kept: Path, best_step: int | None) -> None:
        for path in self.folder.glob("step-*"):
            if path != kept:
                _remove(path)
        for path in self.folder.glob("best-*.pt"):
            if best_step is None or path != self._best(best_step):
                _remove(path)


def _locked(path: Path) -> int:
    """Hold a lock that ends with this process, however it ends; return its file descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BulwarkError(
            f"Another process is training into {path.parent}; wait for it or end it. (If a run was killed, one of its "
            "processes may be left.)"
        ) from None
    except OSError as error:  # some network file systems know no locks
        log.warning("%s cannot be locked (%s); see that only one process trains into this folder.", path, error)
    return descriptor


def _difference(record: Path, fingerprint: dict[str, Any]) -> str:
    """Where the recorded fingerprint differs from this one: the path of the first key; "" where they agree."""
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no fingerprint"
    except ValueError:
        return "its fingerprint cannot be read"
    return _first_difference(recorded, fingerprint, "")


def _first_difference(one: Any, other: Any, where: str) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other:
                return f"{where}{key} is only in one"
            if difference := _first_difference(one[key], other[key], f"{where}{key}."):
                return difference
        return ""
    return "" if one == other else f"{where.rstrip('.')}: {str(one)[:60]} became {str(other)[:60]}"


def _is_complete(path: Path) -> bool:
    """Whether every file that complete.json names is there in its size."""
    try:
        sizes = json.loads((path / "complete.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return path.suffix != ".tmp" and all(
        (path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items()
    )


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        # Renamed first, so that a kill in the middle leaves nothing that looks like a state.
        doomed = path if path.suffix == ".tmp" else path.with_suffix(".tmp")
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink()


def _wait() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()
