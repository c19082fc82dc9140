"""Writing a file whole or not at all; digests of files, folders and plain data. Imports nothing heavy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bulwark.errors import BulwarkError, CheckpointError

_AGAIN = "give the same command again"


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all (see `written_whole`)."""
    with written_whole(path) as file:
        file.write(text)


@contextmanager
def written_whole(path: str | Path) -> Iterator[TextIO]:
    """A text file to write, which appears at `path` when the block ends, or not at all if it raises.

    It is written to a temporary file in the same folder, synced to the disk and renamed. Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def readable(path: str | Path) -> None:
    """Give the file the permissions of a newly created one: safetensors makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def digest(thing: Any) -> str:
    """Return the SHA-256 of a file (str or Path), of a folder (names and contents) or of plain data (canonical JSON).

    Raises CheckpointError when the file does not exist, TypeError for data that JSON cannot hold.
    """
    if not isinstance(thing, str | Path):
        text = json.dumps(thing, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    path = Path(thing)
    if path.is_dir():
        return digest([[name, sha256_of(path / name)] for name in files_below(path)])
    return sha256_of(path)


def files_below(folder: Path) -> list[str]:
    """All files below `folder`, relative and sorted; links are followed (Hub snapshots), dot files are left out."""
    names = []
    for place, folders, files in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        names += [(relative / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def walk(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, into linked folders too, except where a link leads back to a folder that it was reached through."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(os.path.join(place, name), str(folder))]
        yield place, folders, names


def _leads_back(path: str, top: str) -> bool:
    if not os.path.islink(path):
        return False
    target, above = os.path.realpath(path), path
    while above not in (top, os.path.dirname(above)):
        above = os.path.dirname(above)
        if os.path.realpath(above) == target:
            return True
    return False


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file or folder.") from None


@contextmanager
def opened(file: Path) -> Iterator[None]:
    """What the system says of a file that is there and cannot be opened, as an error with file and remedy.

    A BulwarkError and not a CheckpointError: no job can mend it, so a plan ends with it.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BulwarkError(f"{file}: {_why_not_opened(file, error)}") from None


def _why_not_opened(file: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"it is there, but you may not read it. Correct its permissions, or have its owner do so, and {_AGAIN}."
    if isinstance(error, NotADirectoryError):
        part = next((above for above in reversed(file.parents) if above.exists() and not above.is_dir()), file.parent)
        return f"{part} is a file, where a folder has to be. Move it away and {_AGAIN}."
    if isinstance(error, IsADirectoryError):
        return f"it is a folder, where a file has to be. Remove it and {_AGAIN}."
    if error.errno == errno.ELOOP:
        return f"it is a link that leads to itself. Remove it and {_AGAIN}."
    return f"it cannot be read ({error.strerror or error}). Mend that, or remove it, and {_AGAIN}."
