"""Manifests: what a checkpoint folder holds and where it comes from, written last and written whole.

A folder is a checkpoint because its manifest says so: the manifest lists every file beside it with size and SHA-256,
and appears by one atomic rename after everything else. torch is not imported here, because the workflow's adapters and
the reports read manifests too.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.errors import CheckpointError
from bulwark.files import digest, files_below

MANIFEST = "checkpoint.json"
BASE_MANIFEST = "model.json"
# What may lie beside a manifest and is no part of it: resumable state, the job's own description, TensorBoard's events.
PASSING = ("training", "training-set-aside", "job.json", "tensorboard")
# How wide a processor's vectors are taken, and so how its sums are rounded, by PyTorch's own kernels and by MKL; null
# leaves it to the processor. The workflow sets both (`bulwark.jobs.calls.round_alike`).
ROUNDING = ("ATEN_CPU_CAPABILITY", "MKL_CBWR")
SNAPSHOTS = "snapshots"  # folder of a checkpoint with a model per snapshot, by its number of optimizer steps
# What transformers reads from a model's folder, if it is there.
_LOADED = re.compile(
    r".*\.(safetensors|bin|pt|pth|py|jinja|index\.json)|.*config\.json|tokenizer.*|vocab.*|merges\.txt|.*\.model"
    r"|(special_tokens_map|added_tokens|chat_template)\.json"
)
_PACKAGES = (
    "bulwark",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "deepspeed",
    "accelerate",
    "peft",
    "datasets",
    "numpy",
    "snakemake",
)


def write_manifest(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write `content` as a manifest at `path`, with `files`: name, bytes, sha256 and time of everything beside it.

    Listed are all files below the manifest's folder but the manifest, dot files and what is `PASSING`; and, when
    `content["weights"]` (a folder relative to the manifest, "." by default) lies elsewhere, the files there that the
    folder's own manifest lists, with their relative names. The file appears atomically and is synced to the disk.
    Returns what was written.

    Cost: every byte is read and hashed once, in parallel over files: about 2 GB/s and core, so some seconds for 16 GB
    in shards that are still in the page cache, and the time of reading them where they are not.
    Raises CheckpointError when the weights' folder does not exist or there is no file to list.
    """
    path = Path(path)
    content = {"weights": "."} | content
    names = _listed(path, content["weights"])
    if not names:
        raise CheckpointError(f"{path}: no files to list beside it or in its weights folder {content['weights']!r}.")
    with ThreadPoolExecutor(max_workers=min(8, len(names), os.cpu_count() or 1)) as pool:
        digests = list(pool.map(lambda name: seals.hashed(seals.beside(path, name)), names))
    stats = [seals.beside(path, name).stat() for name in names]
    files = [
        {"name": name, "bytes": stat.st_size, "sha256": sha256, "modified": stat.st_mtime_ns}
        for name, stat, sha256 in zip(names, stats, digests, strict=True)
    ]
    return seals.write_manifest(path, content | {"files": files})


def read_manifest(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read the manifest at `path` (or of the folder `path`).

    `verify` compares every listed file's size and SHA-256 with it (each file is read once per change and machine).
    Raises CheckpointError naming the file that is missing or changed, if the manifest itself was changed, and for a
    trial that diverged.
    """
    path = manifest_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no manifest, so what lies beside it is not a finished checkpoint.")
    content = seals.read_manifest(path)
    if "diverged" in content:
        raise CheckpointError(
            f"{path}: the training of this trial diverged, so there is no model. {content['diverged']}"
        )
    if verify:
        seals.verify_files(path, content["files"])
    return content


def write_diverged(path: Path, content: dict[str, Any], reason: str) -> dict[str, Any]:
    """Write the manifest of a trial whose training diverged: it lists no file, and weights of an earlier one go.

    Returns what was written.
    """
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if holds_weights(file.name):
            file.unlink()
    return seals.write_manifest(path, content | {"diverged": reason, "files": []})


def divergence(path: str | Path) -> str | None:
    """Why the training of the manifest at `path` (or of the folder) diverged, so that there is no model, or None."""
    path = manifest_path(path)
    return seals.read_manifest(path).get("diverged") if path.is_file() else None


def weights_folder(path: str | Path) -> Path:
    """Return the folder of the weights that the manifest at `path` (or of the folder `path`) belongs to."""
    path = manifest_path(path)
    return seals.beside(path, read_manifest(path, verify=False).get("weights", "."))


def holds_weights(name: str) -> bool:
    """Whether a file of this name holds a model's weights, all of them or a shard."""
    return seals.WEIGHTS.fullmatch(Path(name).name) is not None


def refuse_unlisted(folder: Path, path: Path, content: dict[str, Any]) -> None:
    """Raise CheckpointError for a file in a manifest's weights folder that loading would read and nobody listed."""
    listed = {seals.beside(path, entry["name"]) for entry in content["files"]}
    for file in sorted(folder.iterdir()):
        if _LOADED.fullmatch(file.name) and file.is_file() and seals.beside(file, file.name) not in listed:
            raise CheckpointError(
                f"{file}: loading the model would read this file, but {path} does not list it: it was put there later. "
                f"Remove it; or, if it belongs to the model, remove {path.name} and give the same command again."
            )


def manifest_path(path: str | Path) -> Path:
    """Return `path` itself or, where it is a folder, the one in it: checkpoint.json, or a base model's model.json."""
    path = Path(path)
    if not path.is_dir():
        return path
    return path / (BASE_MANIFEST if (path / BASE_MANIFEST).exists() else MANIFEST)


def open_manifest(path: str | Path) -> tuple[Path, Path, str]:
    """Return manifest, weights folder and name of the prompt template of the checkpoint `path` (manifest or folder).

    Raises CheckpointError if a file is missing or has another size than listed, or no template is named.
    """
    path = manifest_path(path)
    content = read_manifest(path)
    if not isinstance(content.get("template"), str):
        raise CheckpointError(f'{path}: the manifest does not name the prompt template (key "template").')
    return path, weights_folder(path), content["template"]


def start_recipe(model: Path, output: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of a recipe's start, `output`: a checkpoint whose weights are those of the base model `model`.

    `model` is the base model's manifest; its hashes are taken over. `identity` says for whom: model, recipe, seed.
    Returns what was written.
    """
    base, folder, template = open_manifest(model)
    weights = Path(os.path.relpath(folder, output.parent)).as_posix()
    to_base = os.path.relpath(base.parent, output.parent)
    content = {
        **identity,
        "kind": "base",
        "template": template,
        "source": {"path": Path(os.path.relpath(base, output.parent)).as_posix(), "digest": digest(base)},
        "weights": weights,
        "provenance": provenance(),
        "files": [
            {**entry, "name": Path(os.path.normpath(os.path.join(to_base, entry["name"]))).as_posix()}
            for entry in read_manifest(base)["files"]
        ],
    }
    return seals.write_manifest(output, content)


def provenance(started: float | None = None) -> dict[str, Any]:
    """Say with what and on what something was made: versions, git commit, Python, hardware, time.

    Results of two processors can be compared to the last bit only if `hardware.rounding` is the same, and is not null.
    `started` (a time.time() at the start of the job) adds `wall_seconds`. The commit is null outside a git checkout;
    `dirty` tells of changes that are not committed.
    """
    now = datetime.now(UTC)
    result = {
        "time": now.isoformat(timespec="seconds"),
        "versions": _versions(),
        "git": _git(Path(__file__).resolve()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
    }
    return result if started is None else result | {"wall_seconds": round(now.timestamp() - started, 1)}


def _listed(path: Path, weights: str) -> list[str]:
    names = [name for name in files_below(path.parent) if name != path.name and Path(name).parts[0] not in PASSING]
    folder = seals.beside(path, weights)
    if not folder.is_dir():
        raise CheckpointError(f'{path}: its weights folder "{weights}" does not exist.')
    if not folder.resolve().is_relative_to(path.parent.resolve()):
        names += [os.path.join(weights, name) for name in _of_model(folder)]
    return names


def _of_model(folder: Path) -> list[str]:
    """The files of a model in another checkpoint's folder: what its manifest lists there, or all if it has none."""
    path = manifest_path(folder)
    if not path.is_file():
        return files_below(folder)
    return [entry["name"] for entry in seals.read_manifest(path)["files"] if Path(entry["name"]).parts[0] != ".."]


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _git(source: Path) -> dict[str, Any]:
    """Commit and state of the checkout that tracks `source`; one in which the file only lies does not count."""

    def git(*arguments: str) -> str | None:
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None or git("ls-files", "--error-unmatch", source.name) is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def _hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "rounding": {name: os.environ.get(name) for name in ROUNDING},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, str]]:
    """The GPUs that nvidia-smi lists; none where it is not installed or finds no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return [{"name": "unknown: nvidia-smi did not answer within 30 s"}]
    if done.returncode:
        return [{"name": f"unknown: nvidia-smi failed ({done.stdout.strip() or done.stderr.strip()})"}]
    fields = ("name", "memory", "driver")
    return [
        dict(zip(fields, (value.strip() for value in line.split(",")), strict=True))
        for line in done.stdout.splitlines()
    ]
