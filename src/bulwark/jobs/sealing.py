"""What every job of the workflow does around its work: verify what it reads, seal what it has made.

Standard library and `bulwark.seals` only, as a script imports it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.errors import BulwarkError, CheckpointError

log = logging.getLogger(__name__)

_FULL = "there is no space left for it. Free some (or a quota) and give the same command again; what is finished stays."
_FORBIDDEN = "it may not be written or read. Correct the permissions (or the mount) and give the same command again."
# What torch says when a file that it writes does not grow; it does not say why.
_CUT_SHORT = ("unexpected pos", "PytorchStreamWriter failed writing", "iostream error", "failed writing file")
_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
}
# A process that was killed may take a moment to go.
_SECONDS_OF_WAITING = 2.0
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Sealing:
    """A job as its seals see it: the files it reads and makes, what the plan asked of it, its rule."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    asked: str
    rule: str


def sealing_of(snakemake: Any) -> Sealing:
    """The sealing of a script's job, from the object that Snakemake gives to the script.

    Raises BulwarkError for a rule that does not say what it asks: no plan could tell whether its results are stale.
    """
    asked, rule = snakemake.params.get("asked"), str(snakemake.rule)
    if not asked:
        raise BulwarkError(
            f'The rule {rule} has no `asked` among its params. Write them as **decided("{rule}", …), as the other '
            "rules under workflow/rules/ do."
        )
    inputs, outputs = (tuple(dict.fromkeys(map(str, files))) for files in (snakemake.input, snakemake.output))
    return Sealing(inputs, outputs, str(asked), rule)


@contextmanager
def sealed(sealing: Sealing | None) -> Iterator[None]:
    """Verify the inputs, then do what stands in the block, then seal the outputs; None: only do it.

    A manifest is written with its seal (see `bulwark.seals.write_manifest`), by whichever process of the job writes it.
    Raises CheckpointError for an input that is not what a job made, BulwarkError if the disk is full or read-only, or
    another process is making the same.
    """
    if sealing is None:
        yield
        return
    with _alone(sealing.outputs[0]):
        known = verified(sealing.inputs)
        with _explained(sealing.outputs):
            for output in sealing.outputs:
                seals.unseal(output)
            pending = {"path": sealing.outputs[0], "asked": sealing.asked, "rule": sealing.rule, "sources": known}
            os.environ[seals.VARIABLE] = json.dumps(pending) if seals.is_manifest(sealing.outputs[0]) else "{}"
            try:
                yield
                for output in sealing.outputs:
                    seals.seal(output, sealing.asked, known, sealing.rule)
            finally:
                os.environ.pop(seals.VARIABLE, None)


def verified(inputs: tuple[str, ...]) -> dict[str, str]:
    """{path: content digest} of a job's inputs, each verified, and that they were made from one another as they are.

    Large files of a model are compared by size; whoever opens it compares their contents.
    """
    found: dict[str, seals.Seal] = {}
    known: dict[str, str] = {}
    for path in inputs:
        if not seals.is_result(path):
            known[path] = seals.own_content(path)
            continue
        found[path] = seals.verify(path, in_place=True, whole=Path(path).name == "download.json")
        known[path] = found[path].sha256
    for path, seal in found.items():
        for source, content in seal.inputs.items():
            if known.get(source, content) != content:
                raise CheckpointError(
                    f"{path}: it was made from another {source} than the one that is there now, so they do not belong "
                    f"together. Remove {path} and give the same command again, or restore {source} from a copy."
                )
    return known


@contextmanager
def _alone(output: str) -> Iterator[None]:
    """Within it no other process makes the same result; Snakemake's own lock may have been taken away.

    The lock is one of the system on a file beside the result. It ends with this process, however that ends, and a file
    that is left behind stops nobody. Where there can be no file, or the file system knows no locks, there is none.
    """
    made = Path(output)
    if seals.is_manifest(made) and made.parent.name:
        made = made.parent  # a folder whose files are listed
    path = made.with_name(f".{made.name}.lock")
    descriptor = _locked(path, output)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _locked(path: Path, output: str) -> int | None:
    """The descriptor of the locked file. Raises BulwarkError that says which process holds it."""
    started = time.monotonic()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # the disk is full or may not be written, which the job itself will run into
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
        except FileNotFoundError:  # whoever held it has just removed it
            pass
        except BlockingIOError:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace")
            if time.monotonic() - started > _SECONDS_OF_WAITING:
                os.close(descriptor)
                raise BulwarkError(
                    f"{output}: another process{f' ({holder})' if holder else ''} is making it just now. Wait for it "
                    "or end it, and give the same command again."
                ) from None
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        except OSError as error:  # some network file systems know no locks
            log.info("%s cannot be locked (%s); see that only one run makes %s", path, error, output)
            os.close(descriptor)
            return None
        os.close(descriptor)


@contextmanager
def _explained(outputs: tuple[str, ...]) -> Iterator[None]:
    """An error of the disk in words, whichever library ran into it."""
    try:
        yield
    except BulwarkError:
        raise
    except Exception as error:
        if reason := _reason(error):
            where = next((str(e.filename) for e in _chain(error) if isinstance(e, OSError) and e.filename), None)
            raise BulwarkError(f"{where or ', '.join(outputs)}: {reason} ({error})") from error
        raise


def _reason(error: BaseException) -> str | None:
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _REASONS:
            return _REASONS[cause.errno]
        for number, reason in _REASONS.items():  # safetensors and torch tell the system's error in their text
            if os.strerror(number) in str(cause) and not isinstance(cause, OSError):
                return reason
        if any(text in str(cause) for text in _CUT_SHORT):
            return _FULL
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def call_of(snakemake: Any) -> Mapping[str, Any]:
    """What `bulwark.jobs.calls.run` is told of a script's job."""
    return {
        "log": snakemake.log[0],
        "gpus": snakemake.resources.get("gpus_per_node", 0),
        "sealing": sealing_of(snakemake),
    }
