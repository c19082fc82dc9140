"""The checkpoint of a snapshot: a manifest that points into the folder of the training that kept it.

A module of its own, because what it writes decides what a snapshot is: a change here makes snapshots again, which one
in `models.manifests`, where nothing decides a result, does not (`bulwark.config.digests`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.errors import CheckpointError
from bulwark.files import digest
from bulwark.models.manifests import SNAPSHOTS, open_manifest, provenance, read_manifest


def take_snapshot(training: Path, step: int, output: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of a snapshot, `output`: a checkpoint whose weights a training kept after `step` steps.

    `training` is the manifest of the finished training; its hashes are taken over. `identity` says for whom: model,
    recipe, seed. Returns what was written. Raises CheckpointError if the training kept no such snapshot.
    """
    path, folder, template = open_manifest(training)
    made = read_manifest(path)
    kept = f"{SNAPSHOTS}/{step}/"
    entries = [entry for entry in made["files"] if entry["name"].startswith(kept)]
    if not entries:
        raise CheckpointError(
            f"{path}: the training kept no snapshot after {step} optimizer steps. Remove it and "
            "give the same command again."
        )
    place = Path(os.path.relpath(folder, output.parent)).as_posix()
    content = {
        **identity,
        **{key: made[key] for key in ("trial", "chosen") if key in made},
        "kind": made["kind"],
        "settings": made["settings"],
        "template": template,
        "prompt_digest": made.get("prompt_digest"),
        "carried": made.get("carried", []),
        "step": step,
        **_training_until(step, made.get("training", {})),
        "source": {"path": Path(os.path.relpath(path, output.parent)).as_posix(), "digest": digest(path)},
        "weights": f"{place}/{kept}".rstrip("/"),
        "provenance": provenance(),
        "files": [{**entry, "name": f"{place}/{entry['name']}"} for entry in entries],
    }
    return seals.write_manifest(output, content)


def _training_until(step: int, report: dict[str, Any]) -> dict[str, Any]:
    """What a training had spent at a snapshot, under the keys of its own report."""
    spent = next((told for told in report.get("spent", []) if told["steps"] == step), None)
    if spent is None:
        return {}
    return {"training": {key: report[key] for key in ("parameters", "trainable_parameters")} | spent}
