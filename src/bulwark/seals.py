"""Seals: what a result was made from and what it holds, checked whenever it is read.

A file that a job makes is sealed by `<file>.seal.json` beside it. A folder with a manifest (a model, a checkpoint, a
download) is sealed by that manifest, which lists its files with sizes and SHA-256. Both hold a digest of themselves, so
that a damaged seal is told from a damaged file. Imports nothing heavy: the plan reads seals, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from bulwark.errors import BulwarkError, CheckpointError
from bulwark.files import digest, files_below, opened, sha256_of, write_text

ENDING = ".seal.json"
MANIFESTS = ("model.json", "checkpoint.json", "download.json")
RESULTS = "results"  # what lies below it was made by a job, and is sealed; everything else is the user's own
VARIABLE = "BULWARK_SEAL"  # what the manifest that this job makes will be sealed with, for all of its processes
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
_CHECK_LENGTH = 16
_AGAIN = "give the same command again"
# Of a larger file a plan believes its time, if it is the one in the seal.
_GLANCED_BYTES = 1 << 16
# Smaller files are hashed at every reading: that takes no longer than looking up what was found the last time.
_REMEMBERED_BYTES = 1 << 20
# A file that changed less than this before it was hashed may change again without its times changing.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Seal:
    """What a result is sealed with, as JSON beside it.

    path: where the job made it. bytes, sha256: of the file; of a manifest 0 and the digest of what it lists. asked: the
    digest of what the plan asked of the job. inputs: {path: content digest} of what the job read. rule: that made it.
    modified: when the file was last written, in nanoseconds; it only serves to see sooner that it was changed since.
    A manifest that no job of the workflow made has "" and {}.
    """

    path: str
    bytes: int
    sha256: str
    asked: str
    inputs: dict[str, str]
    rule: str
    modified: int = 0


def seal(output: str | Path, asked: str, inputs: Mapping[str, str], rule: str) -> None:
    """Seal a file, or a manifest, that a job of `rule` has just made.

    asked: a digest of all that the plan decides about the job. inputs: {path: content digest} of all it read.
    Raises CheckpointError if the output is not there.
    """
    output = Path(output)
    told: dict[str, Any] = {"path": output.as_posix(), "asked": asked, "rule": rule}
    if is_manifest(output):
        known = read_manifest(output)
        wanted = known | told | {"sources": dict(inputs)}
        if wanted != known:
            write_manifest(output, wanted)
        return
    sha256 = hashed(output)
    stat = output.stat()
    told |= {"bytes": stat.st_size, "sha256": sha256, "inputs": dict(inputs), "modified": stat.st_mtime_ns}
    write_text(seal_of(output), _text(_signed(told)))


def unseal(output: str | Path) -> None:
    """Remove the seal of a file that is about to be made again."""
    if not is_manifest(output):
        with opened(seal_of(output)):
            seal_of(output).unlink(missing_ok=True)


def read(path: str | Path) -> Seal | None:
    """The seal of a file or manifest; None if there is none. The file itself is not looked at.

    Raises CheckpointError if the seal (or manifest) is damaged, BulwarkError if it cannot be opened as a file.
    """
    path = Path(path)
    if is_manifest(path):
        try:
            known = read_manifest(path)
        except FileNotFoundError:
            return None
        inputs = known.get("sources", {})
        return Seal(known.get("path", ""), 0, _listing(known), known.get("asked", ""), inputs, known.get("rule", ""))
    try:
        known = _checked(seal_of(path), f"Remove {path} and {seal_of(path).name} and {_AGAIN}")
    except FileNotFoundError:
        return None
    try:
        return Seal(**known)
    except TypeError as error:
        raise CheckpointError(f"{seal_of(path)}: not a seal ({error}). Remove it and {path} and {_AGAIN}.") from None


def content(path: str | Path) -> str:
    """The digest of what a result or a checkpoint holds, for the seal of what is made from it.

    Of a sealed file below results/ it is the SHA-256 in its seal; of a manifest, wherever it lies, a digest of the
    files it lists and of their template; of anything else see `own_content`. Raises CheckpointError if there is no such
    file, or its seal is damaged.
    """
    path = Path(path)
    sealed = is_manifest(path) or is_result(path)
    known = read(path) if sealed and path.is_file() else None
    return own_content(path) if known is None else known.sha256


def own_content(path: str | Path) -> str:
    """The digest of a file or folder of the user's, computed once per change, whatever its name and what lies beside.

    Raises CheckpointError if there is none, BulwarkError if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        names = files_below(path)
        return digest([[name, sha256] for name, sha256 in zip(names, _all_hashed(path, names), strict=True)])
    return hashed(path)


def verify(path: str | Path, *, in_place: bool = False, whole: bool = True) -> Seal:
    """Compare a result with its seal, or all files of a manifest with what it lists, and return the seal.

    A file is read once per change of its size, times or inode and machine. in_place: also require that the result lies
    where it was made (the folder above `results/` does not matter), so that exchanged results are told. whole: False
    compares the large files of a manifest by size only.
    Raises CheckpointError naming the file and the remedy, BulwarkError for what cannot be opened.
    """
    path = Path(path)
    known = read(path)
    remedy = f"Remove {path} and {_AGAIN}, or restore both from a copy."
    if known is None:
        if not path.exists():
            raise CheckpointError(f"{path}: it is missing. {_AGAIN.capitalize()} to make it.")
        raise CheckpointError(
            f"{path}: it has no seal ({seal_of(path).name}), so nobody can tell whether it is what a job made. {remedy}"
        )
    if is_manifest(path):
        verify_files(path, read_manifest(path)["files"], whole)
    else:
        _verify_file(path, known.bytes, known.sha256, remedy)
    if in_place and not _lies_at(path, known.path):
        made = f"was made as {known.path}" if known.path else "was not made by this workflow"
        raise CheckpointError(f"{path}: what lies here {made}, so it was exchanged or copied. {remedy}")
    return known


def damage(path: str | Path) -> str:
    """What is wrong with a result, found at little cost, for a plan that looks at thousands; "" for nothing.

    Compared are the size of every file, and the content of those that are small or were written since they were sealed.
    Weights may be missing: they are removed to save space, and who opens the model says so.
    Raises CheckpointError if the seal is damaged, BulwarkError for what cannot be opened; "" for what has none.
    """
    path = Path(path)
    known = read(path)
    if known is None:
        return ""
    listed = [(path, known.bytes, known.sha256, known.modified)]
    if is_manifest(path):
        entries = read_manifest(path)["files"]
        listed = [(beside(path, e["name"]), e["bytes"], e["sha256"], e.get("modified", 0)) for e in entries]
    for file, size, sha256, modified in listed:
        try:
            stat = _stat(file)
        except FileNotFoundError:
            if WEIGHTS.fullmatch(file.name):
                continue
            return f"{file} is missing"
        if stat.st_size != size:
            return f"{file} has {stat.st_size} bytes, but had {size} when it was made"
        untouched = size > _GLANCED_BYTES and stat.st_mtime_ns == modified
        if not untouched and hashed(file) != sha256:
            return f"{file} has another content than when it was made"
    return ""


def checked(path: str | Path) -> Path:
    """A path, verified if what lies there is sealed, as everything below results/ has to be. Raises as `verify`.

    Where nothing lies, and no seal, it is for the caller to say so.
    """
    path = Path(path)
    if is_manifest(path) or seal_of(path).exists() or (is_result(path) and path.exists()):
        verify(path)
    return path


def verify_files(manifest: Path, listed: list[dict[str, Any]], whole: bool = True) -> None:
    """Compare files of a manifest with its list. Raises CheckpointError naming the first that differs.

    whole: False compares large files by size only.
    """

    def check(entry: dict[str, Any], hashes: bool = True) -> None:
        file = beside(manifest, entry["name"])
        own = next((file.with_name(name) for name in MANIFESTS if file.with_name(name).exists()), manifest)
        remedy = f"Restore it from a copy, or remove {own} and {_AGAIN} to make it new."
        _verify_file(file, entry["bytes"], entry["sha256"] if hashes else None, remedy)

    large = [entry for entry in listed if entry["bytes"] >= _REMEMBERED_BYTES]
    for entry in listed:
        check(entry, hashes=entry["bytes"] < _REMEMBERED_BYTES)
    if whole and large:
        with ThreadPoolExecutor(max_workers=min(8, len(large), os.cpu_count() or 1)) as pool:
            list(pool.map(check, large))


def verify_listed(manifest: Path, name: str) -> Path:
    """The place of the file `name` of a manifest, verified. Raises CheckpointError if it is changed or not listed."""
    listed = [entry for entry in read_manifest(manifest)["files"] if entry["name"] == name]
    if not listed:
        raise CheckpointError(f"{manifest}: it lists no {name}. Remove it and {_AGAIN} to make it new.")
    verify_files(manifest, listed)
    return beside(manifest, name)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, without its digest. Raises CheckpointError if it is damaged or was edited."""
    known = _checked(path, f"Restore it from a copy, or remove it and {_AGAIN}", "digest")
    try:
        [(entry["name"] + "", entry["bytes"] + 0, entry["sha256"] + "") for entry in known["files"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({type(error).__name__}: {error}).") from None
    return known


def write_manifest(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Write a manifest with a digest of itself, and with what the present job seals its results with."""
    known = {key: value for key, value in known.items() if key != "digest"}
    pending = json.loads(os.environ.get(VARIABLE, "{}"))
    if pending.get("path") == path.as_posix():
        known |= pending
    whole = _signed(known, "digest")
    write_text(path, _text(whole))
    del whole["digest"]
    return whole


def beside(manifest: Path, name: str) -> Path:
    """The place of a listed name; by its words, so that "../" stays right where results/ is made of links."""
    return Path(os.path.normpath(manifest.parent / name))


def seal_of(path: str | Path) -> Path:
    """Where the seal of a file lies."""
    return Path(f"{path}{ENDING}")


def is_manifest(path: str | Path) -> bool:
    return Path(path).name in MANIFESTS


def is_result(path: str | Path) -> bool:
    """Whether a path, as the workflow names it, lies below results/. Everything else is the user's own."""
    return Path(path).parts[:1] == (RESULTS,)


def _stat(file: Path) -> os.stat_result:
    with opened(file):
        found = file.stat()
        if S_ISDIR(found.st_mode):
            raise IsADirectoryError
    return found


def _verify_file(file: Path, size: int, sha256: str | None, remedy: str) -> None:
    try:
        now = _stat(file).st_size
    except FileNotFoundError:
        raise CheckpointError(f"{file}: it is missing. {remedy}") from None
    if now != size:
        raise CheckpointError(f"{file}: it has {now} bytes, but had {size} when it was made: changed or cut. {remedy}")
    if sha256 is not None and hashed(file) != sha256:
        raise CheckpointError(f"{file}: its content is not what was written (its SHA-256 differs): changed. {remedy}")


def _lies_at(path: Path, made: str) -> bool:
    """Whether a path ends as the one it was made under; the first part, results/, may be named and lie otherwise."""
    tail = Path(made).parts[1:] if not Path(made).is_absolute() else Path(made).parts[-1:]
    return bool(made) and Path(os.path.abspath(path)).parts[-len(tail) :] == tail


def _listing(known: Mapping[str, Any]) -> str:
    files = sorted([entry["name"], entry["sha256"]] for entry in known["files"])
    return digest({"files": files, "template": known.get("template")})


def _checked(file: Path, remedy: str, key: str = "check") -> dict[str, Any]:
    """A JSON object that holds its own digest, without it.

    Raises FileNotFoundError, CheckpointError if it is damaged, and BulwarkError if it cannot be opened.
    """
    try:
        with opened(file):
            try:
                text = file.read_text(encoding="utf-8")
            except FileNotFoundError:
                os.listdir(file.parent)  # a network file system may remember that it was not there yet
                text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: damaged, it is no text ({error}). {remedy}.") from None
    try:
        known = json.loads(text)
        right = text == _text(known)  # to the byte, as it was written
        right = known.pop(key, None) == digest(known) and right
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged, it is no JSON object ({error}). {remedy}.") from None
    if not right:
        raise CheckpointError(f"{file}: damaged or edited, its own digest (key {key!r}) differs. {remedy}.")
    return known


def _signed(known: Mapping[str, Any], key: str = "check") -> dict[str, Any]:
    known = json.loads(_text(known))  # as it will be read: keys as text, tuples as lists
    return {**known, key: digest(known)}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# Lines of files that grow


def signed_line(row: Mapping[str, Any], before: str = "") -> str:
    """A line of JSON with a digest of itself under "check"; before: what it stands behind, which counts, too."""
    row = json.loads(json.dumps(row))
    return json.dumps({**row, "check": _check(row, before)}, separators=(",", ":"), allow_nan=False) + "\n"


def row_of(line: str | bytes, before: str = "") -> dict[str, Any]:
    """The row of a line that `signed_line` made. Raises ValueError if anything of it was changed since."""
    try:
        row = json.loads(line)
    except RecursionError as error:  # thousands of brackets
        raise ValueError(str(error)) from None
    if not isinstance(row, dict) or row.pop("check", None) != _check(row, before):
        raise ValueError("its digest (check) differs")
    return row


def _check(row: Mapping[str, Any], before: str) -> str:
    return hashlib.sha256((before + json.dumps(row, sort_keys=True)).encode()).hexdigest()[:_CHECK_LENGTH]


# What was hashed before


def hashed(path: str | Path) -> str:
    """The SHA-256 of a file; of a large one it is remembered, by machine, place, size, times and inode.

    What is remembered lies in `$XDG_CACHE_HOME/bulwark/verified` (`~/.cache/…`), a small file for each; one that is
    damaged, of another state of the file, or cannot be written is as good as none.
    Raises CheckpointError if there is no such file, BulwarkError if it cannot be read.
    """
    path = Path(path)
    try:
        with opened(path):
            return _hashed(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file or folder.") from None


def _hashed(path: Path) -> str:
    before = _state(path)
    if before[0] < _REMEMBERED_BYTES:
        return sha256_of(path)
    place = _remembered(path)
    if (sha256 := _found.get((place, before))) or (sha256 := _recalled(place, before)):
        return sha256
    started = time.time()
    sha256 = sha256_of(path)
    settled = started - max(before[2:4]) / 1e9 > _SETTLED_SECONDS
    if settled and _state(path) == before:
        _found[place, before] = sha256
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            temporary.write_text(_text(_signed({"state": before, "sha256": sha256})), encoding="utf-8")
            os.replace(temporary, place)
    return sha256


_found: dict[tuple[Path, tuple[int, ...]], str] = {}  # what this process has hashed or recalled


def _all_hashed(folder: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: hashed(folder / name), names))


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does: the time of the last change of its inode (ctime) cannot be set back."""
    stat = path.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev


def _remembered(path: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(f"{socket.gethostname()}\0{os.path.realpath(path)}".encode(errors="surrogateescape"))
    return Path(cache) / "bulwark" / "verified" / f"{name.hexdigest()[:32]}.json"


def _recalled(place: Path, state: tuple[int, ...]) -> str | None:
    with suppress(OSError, BulwarkError, TypeError):
        known = _checked(place, "")
        if known.get("state") == list(state) and isinstance(known.get("sha256"), str):
            _found[place, state] = known["sha256"]
            return known["sha256"]
    return None
