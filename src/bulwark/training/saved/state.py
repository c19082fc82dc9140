"""The state of an unfinished training, from which a killed run resumes as if nothing had happened.

    state/fingerprint.json       what the training is: settings, digests, number of processes, library versions
    state/step-000123/           written as step-000123.tmp, synced, then renamed: it is whole or it is not there
        engine/                  model, optimizer and schedule, by DeepSpeed, each rank its part
        process-0.pt             per rank: random number generators, the state of objective and observers
        position.json            the losses so far, the best step, the clock
        complete.json            the step, the digest of the fingerprint, the SHA-256 of all files above and of itself
    state/best-000100.pt         weights of the lowest evaluation loss, if they are to be kept
    state/snapshot-000040.pt     weights after that step, if the settings list it
    state/lock                   held by the process that trains

The old state goes when the new one is whole, so that there are two while one is written: whatever is written over the
only state on the disk would be lost in a kill. State of another training is never resumed: it is set aside, beside the
folder, and taken up again if its training comes back. A state that is damaged is an error.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bulwark import files
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.files import write_text
from bulwark.training.engine import Processes, gather_weights
from bulwark.training.saved import files as stored

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.training.observers import Observer

log = logging.getLogger(__name__)

SET_ASIDE = "set-aside"  # behind the folder's name


class TrainingState:
    """The folder of one training's state. All ranks call every method; the main process does what concerns all.

    fingerprint: plain data (JSON) that says which training this is. partial: only the trainable weights are
    written, for adapters, because the frozen ones come with the parent. snapshots: steps whose weights are to be kept;
    a state beyond one of them that lacks it is not resumed. `close` lets the folder go.
    seconds: that the last `save` took. failure: why it did not succeed; "" if it did.

    Raises BulwarkError if another process is training into the folder, CheckpointError for a damaged state.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Any],
        processes: Processes,
        partial: bool = False,
        snapshots: Sequence[int] = (),
    ) -> None:
        self.folder, self.processes, self.partial = Path(folder), processes, partial
        self._wanted = {_name("snapshot", step) for step in snapshots}
        self.seconds, self.failure = 0.0, ""
        self._fingerprint = json.loads(json.dumps(fingerprint, default=str))
        self._digest = files.digest(self._fingerprint)
        self._beside: dict[str, str] = {}  # best-….pt and snapshot-….pt: their SHA-256
        self._unwritten: dict[str, dict[str, Any]] = {}  # what they hold, where the disk was full
        self._lock = None
        problem = None
        if processes.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder / "lock")
            try:
                self._claim()
            except CheckpointError as error:
                self.close()
                problem = error
        _agree(problem)

    def close(self) -> None:
        """Let another process have the folder; its content stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def latest(self) -> Path | None:
        """The newest state, or None."""
        return max(_states(self.folder), key=lambda path: int(path.name.removeprefix("step-")), default=None)

    def save(self, engine: DeepSpeedEngine, parts: Sequence[Observer], position: dict[str, Any]) -> bool:
        """Write the state after `position["step"]` optimizer steps, then remove the older ones; whether it succeeded.

        parts: the objective and the observers, each with a state of its own. On a disk that is full or fails, the
        state that was there stays, and a warning says so.
        """
        started = time.monotonic()
        final = self.folder / f"step-{position['step']:06d}"
        unfinished = final.with_suffix(".tmp")
        written: dict[Path, str] = {}
        errors: list[OSError] = []
        if self.processes.main:
            try:
                for stale in (unfinished, final):
                    shutil.rmtree(stale, ignore_errors=True)
                self._refuse_without_room()
                self._write_the_unwritten()
                (unfinished / "engine").mkdir(parents=True)
            except OSError as error:
                errors.append(error)
        if not _told(errors):
            engine.checkpoint_engine = stored.state_files(written, errors.append)
            engine.save_checkpoint(
                str(unfinished), tag="engine", save_latest=False, exclude_frozen_parameters=self.partial
            )
            own = {"random": _random_state(), "parts": [part.state_dict() for part in parts]}
            path = unfinished / f"process-{self.processes.rank}.pt"
            engine.checkpoint_engine.save(own, str(path))
            digests = {str(path.relative_to(unfinished)): digest for path, digest in written.items()}
            shares = _gathered(digests)
            if not _told(errors) and self.processes.main:
                try:
                    self._complete(unfinished, final, position, {k: v for part in shares for k, v in part.items()})
                except OSError as error:
                    errors.append(error)
        self.failure = _told(errors)
        if self.failure and self.processes.main:
            shutil.rmtree(unfinished, ignore_errors=True)
            left = self.latest()
            log.warning(
                "The state after step %d could not be saved (%s). Training goes on; %s.",
                position["step"],
                self.failure,
                f"{left} stays" if left else "nothing has been saved yet",
            )
        _wait()
        self.seconds = time.monotonic() - started
        return not self.failure

    def load(self, engine: DeepSpeedEngine, parts: Sequence[Observer]) -> dict[str, Any] | None:
        """Put engine, parts and random numbers back to the newest state; return its position or None.

        Every file is verified first, shared out over the ranks. Raises CheckpointError for a file that was damaged.
        """
        latest = self.latest()
        if latest is None:
            return None
        listed = _complete_of(latest)["files"]
        problem = None
        for name in sorted(listed)[self.processes.rank :: self.processes.count]:
            try:
                stored.verify(Path(os.path.normpath(latest / name)), listed[name], latest)
            except CheckpointError as error:
                problem = problem or error
        _agree(problem)
        self._beside = {Path(name).name: digest for name, digest in listed.items() if name.startswith("../")}
        engine.checkpoint_engine = stored.state_files({}, lambda error: None)
        loaded, _ = engine.load_checkpoint(str(latest), tag="engine", load_module_strict=not self.partial)
        if loaded is None:
            raise CheckpointError(f"{latest / 'engine'} could not be read. {stored.remedy(latest)}")
        own = stored.load(latest / f"process-{self.processes.rank}.pt")
        for part, state in zip(parts, own["parts"], strict=True):
            part.load_state_dict(state)
        _set_random_state(own["random"])
        position = json.loads((latest / "position.json").read_text(encoding="utf-8"))
        if self.processes.main:
            log.info("Resuming after step %d from %s.", position["step"], latest)
        return position

    def keep_best(self, engine: DeepSpeedEngine, step: int) -> None:
        """Write the present weights as those of the lowest evaluation loss so far."""
        # The former best stays until a state that no longer names it has been saved.
        self._keep(engine, _name("best", step))

    def keep_snapshot(self, engine: DeepSpeedEngine, step: int, observed: list[dict[str, Any]]) -> None:
        """Write the present weights as those after `step` steps, with what the observers have in mind."""
        self._keep(engine, _name("snapshot", step), observed)

    def best_weights(self, step: int) -> dict[str, Tensor]:
        """What `keep_best` wrote at `step`; on the main process."""
        return self._kept(_name("best", step))["weights"]

    def snapshot(self, step: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """What `keep_snapshot` wrote at `step`; on the main process."""
        kept = self._kept(_name("snapshot", step))
        return kept["weights"], kept["observed"]

    def _keep(self, engine: DeepSpeedEngine, name: str, observed: Sequence[dict[str, Any]] = ()) -> None:
        weights = gather_weights(engine, trainable_only=True)
        if weights is None:
            return
        self._unwritten[name] = {"weights": weights, "observed": list(observed)}
        try:
            self._write_the_unwritten()
        except OSError as error:
            log.warning("%s could not be written (%s); it is kept in memory.", self.folder / name, error)

    def _write_the_unwritten(self) -> None:
        for name, content in list(self._unwritten.items()):
            target = self.folder / name
            unfinished = target.with_suffix(".tmp")
            try:
                digest = stored.save(content, unfinished)
                _sync(unfinished)
                os.replace(unfinished, target)
                _sync(self.folder)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
            self._beside[name] = digest
            del self._unwritten[name]

    def _kept(self, name: str) -> dict[str, Any]:
        if name in self._unwritten:
            return self._unwritten[name]
        latest = self.latest()
        stored.verify(self.folder / name, self._beside[name], latest or self.folder)
        return stored.load(self.folder / name)

    def _complete(self, unfinished: Path, final: Path, position: dict[str, Any], digests: dict[str, str]) -> None:
        """Make the written files the newest state."""
        best = position.get("best_step")
        named = {name for name in self._beside if name.startswith("snapshot-")}
        named |= {_name("best", best)} & self._beside.keys() if best is not None else set()
        digests |= {f"../{name}": self._beside[name] for name in named}
        _write_json(unfinished / "position.json", position)
        digests["position.json"] = files.sha256_of(unfinished / "position.json")
        complete = {"step": position["step"], "fingerprint": self._digest, "files": digests}
        _write_json(unfinished / "complete.json", complete | {"sha256": files.digest(complete)})
        for path in ("position.json", "complete.json", "engine", "."):
            _sync(unfinished / path)
        os.replace(unfinished, final)
        _sync(self.folder)
        for path in _states(self.folder):
            if path != final:
                _remove(path)
        for path in self.folder.glob("*-*.pt"):
            if path.name not in named:
                _remove(path)
                self._beside.pop(path.name, None)

    def _refuse_without_room(self) -> None:
        """Raise OSError where the disk has no room for a second state beside the last one."""
        latest = self.latest()
        size = sum(path.stat().st_size for path in latest.rglob("*")) if latest else 0
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(f"{size / 1e9:.1f} GB are needed beside the last state, {free / 1e9:.1f} GB are free")

    def _claim(self) -> None:
        """Make the folder this training's: remove what is unfinished, set aside what another training left."""
        for path in self.folder.glob("*.tmp"):
            _remove(path)
        record = self.folder / "fingerprint.json"
        others = [path for path in _states(self.folder) if not self._is_ours(path)]
        difference = _difference(record, self._fingerprint)
        if others:
            place = self._set_aside()
            log.warning(
                "%s is of another training (%s). It was moved to %s and is taken up again if that training comes back; "
                "remove it if it will not.",
                others[0],
                difference or "it lacks a snapshot, or was put there by hand",
                place,
            )
        if not self.latest():
            for path in self.folder.glob("*-*.pt"):
                _remove(path)
            self._take_back()
        if others or difference or not record.exists():
            write_text(record, json.dumps(self._fingerprint, indent=1))

    def _is_ours(self, state: Path) -> bool:
        complete = _complete_of(state)
        due = {name for name in self._wanted if name <= _name("snapshot", complete["step"])}
        return complete["fingerprint"] == self._digest and all(f"../{name}" in complete["files"] for name in due)

    def _set_aside(self) -> Path:
        """Move everything that another training left to a new folder beside this one."""
        beside = self.folder.with_name(f"{self.folder.name}-{SET_ASIDE}")
        place = next(path for n in itertools.count(1) if not (path := beside / str(n)).exists())
        place.mkdir(parents=True)
        for path in sorted(self.folder.iterdir(), reverse=True):  # the state before what belongs to it
            if path.name.startswith(("step-", "best-", "snapshot-", "fingerprint")):
                os.replace(path, place / path.name)
        return place

    def _take_back(self) -> None:
        """Move back the state of this very training, if it was set aside."""
        beside = self.folder.with_name(f"{self.folder.name}-{SET_ASIDE}")
        for place in sorted(beside.glob("*")):
            states = _states(place)
            if states and all(self._is_ours(path) for path in states):
                for path in sorted(place.iterdir()):  # the state last
                    os.replace(path, self.folder / path.name)
                place.rmdir()
                log.warning("The state of this training, which had been set aside in %s, is taken up again.", place)
                break
        if beside.is_dir() and not any(beside.iterdir()):
            beside.rmdir()


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


def _states(folder: Path) -> list[Path]:
    """The states in a folder, whole by their names."""
    return [path for path in folder.glob("step-*") if path.is_dir() and path.suffix != ".tmp"]


def _complete_of(state: Path) -> dict[str, Any]:
    """complete.json of a state. Raises CheckpointError if it is not what `TrainingState` writes."""
    path = state / "complete.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fine = content.pop("sha256") == files.digest(content) and content["step"] == int(state.name[len("step-") :])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fine = False
    if not fine:
        raise CheckpointError(f"{path}: missing, damaged or of an earlier version. {stored.remedy(state)}")
    return content


def _name(kind: str, step: int) -> str:
    return f"{kind}-{step:06d}.pt"


def _gathered(thing: Any) -> list[Any]:
    """What every rank has, in their order."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [thing]
    things: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(things, thing)
    return things


def _told(errors: list[OSError]) -> str:
    """The first error of any rank, in words; "" if there is none. All ranks must call it."""
    return next(filter(None, _gathered(str(errors[0]) if errors else "")), "")


def _agree(problem: CheckpointError | None) -> None:
    """Raise the first problem of any rank on all of them. All ranks must call it."""
    text = next(filter(None, _gathered(str(problem) if problem else None)), None)
    if text:
        raise CheckpointError(text)


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
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
