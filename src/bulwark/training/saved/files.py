"""The files of a training's state: written with their SHA-256, verified before they are read, never unpickled freely.

DeepSpeed writes and reads its own part through `StateFiles`, everything else goes through `save` and `load`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bulwark.errors import CheckpointError
from bulwark.files import sha256_of


def save(thing: Any, path: Path) -> str:
    """Write tensors and plain data, synced to the disk; return the SHA-256 of the file.

    Raises OSError where the disk is full or fails.
    """
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(thing, hashed)
        except RuntimeError as error:  # of torch's writer, after one of ours
            raise hashed.error or OSError(str(error)) from error
        if hashed.error:
            raise hashed.error
        file.flush()
        os.fsync(file.fileno())
    return hashed.digest.hexdigest()


def load(path: Path, allowed: list[Any] | None = None) -> Any:
    """Read what `save` wrote: tensors, plain data and objects of the `allowed` classes, on the CPU.

    Raises CheckpointError for a file that cannot be read as that.
    """
    try:
        with torch.serialization.safe_globals(allowed or []):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error}). {remedy(path.parent)}") from error


def verify(path: Path, sha256: str, state: Path) -> None:
    """Raise CheckpointError, with what to do, if the file of the `state` is not the one that was written."""
    if not path.is_file():
        raise CheckpointError(f"{path}: this file of a training's state is missing. {remedy(state)}")
    if sha256_of(path) != sha256:
        raise CheckpointError(f"{path}: this file of a training's state was damaged or changed. {remedy(state)}")


def remedy(state: Path) -> str:
    return f"Restore it, or remove {state} to train from the start."


class _Hashed:
    """A file that is hashed while it is written. Its first error is kept, since torch's writer tells another."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.digest.update(data)
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


def state_files(done: dict[Path, str], failed: Callable[[OSError], None]) -> Any:
    """What DeepSpeed's engine writes and reads its part of a state through.

    done: gets the SHA-256 of each file. failed: called for a file that could not be written, in place of an error:
    the ranks wait for one another within DeepSpeed, and would wait for ever for one that is not there.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    class StateFiles(TorchCheckpointEngine):
        def makedirs(self, path, exist_ok=False):
            try:
                os.makedirs(path, exist_ok=exist_ok)
            except OSError as error:
                failed(error)

        def save(self, state_dict, path):
            try:
                done[Path(path)] = save(state_dict, Path(path))
            except OSError as error:
                failed(error)

        def load(self, path, map_location=None):
            return load(Path(path), [LossScaler, ZeroStageEnum, fragment_address])

    return StateFiles()
