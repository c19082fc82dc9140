"""The best of trials: the one with the lowest validation loss becomes a checkpoint under a name of its own.

Its weights are hard links to those of the trial, so that they lie on the disk once, and stay when the trials' weights
are removed. Where the file system has no such links they are copied. Everything else is small, and copied.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.errors import CheckpointError
from bulwark.files import digest
from bulwark.models import manifests

log = logging.getLogger(__name__)

_OF_THE_TRIAL = ("path", "asked", "rule", "sources", "wall_seconds")  # what its own job was sealed with, and took


def choose_trial(trials: Mapping[str, Path], output: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Make the checkpoint `output` of the trial with the lowest validation loss; of equal ones, the first.

    trials: {name: manifest}. identity: for whom it is made: model, recipe, seed. The loss of a trial is that of the
    weights that it saved. The manifest is the trial's, with `chosen`: {trial, validation_loss, losses: {name: loss},
    left_out: {name: why}}; a trial is left out if it diverged, or noted no loss. Returns what was written.
    Raises CheckpointError if all are left out, or a file of the chosen one is missing or changed.
    """
    losses: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, path in trials.items():
        loss, reason = _loss_of(seals.read_manifest(path))
        if loss is None:
            log.warning("%s is not chosen: %s", name, reason)
            left_out[name] = reason
        else:
            log.info("%s: validation loss %.6f", name, loss)
            losses[name] = loss
    if not losses:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
        raise CheckpointError(f"{output}: none of the trials has a validation loss, so none can be chosen:{reasons}")
    best = min(losses, key=losses.__getitem__)
    log.info("%s is chosen of %d.", best, len(trials))
    path = trials[best]
    made = manifests.read_manifest(path)
    _take(path, output, [entry["name"] for entry in made["files"]])
    content = {
        **{key: value for key, value in made.items() if key not in _OF_THE_TRIAL},
        **identity,
        "source": {"path": Path(os.path.relpath(path, output.parent)).as_posix(), "digest": digest(path)},
        "chosen": {"trial": best, "validation_loss": losses[best], "losses": losses, "left_out": left_out},
    }
    return seals.write_manifest(output, content)


def _loss_of(manifest: Mapping[str, Any]) -> tuple[float | None, str]:
    """The validation loss of the weights that a training saved; None, and why, if there is none."""
    if "diverged" in manifest:
        return None, f"it diverged. {manifest['diverged']}"
    report = manifest.get("training", {})
    noted = dict(report.get("validation", []))
    loss = noted.get(report.get("weights_of_step"))
    if loss is None:
        return None, "its training noted no validation loss of the weights that it saved."
    return float(loss), ""


def _take(path: Path, output: Path, names: list[str]) -> None:
    """Put the listed files of the manifest `path` beside `output`, in place of all that lies there."""
    folder = output.parent
    for place, _, files in os.walk(folder):
        for name in files:
            Path(place, name).unlink()
    for name in names:
        source, target = seals.beside(path, name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if manifests.holds_weights(name):
            try:
                os.link(source, target)
                continue
            except OSError as error:  # another file system, or one without links
                log.info("%s cannot be linked (%s), and is copied", source, error)
        shutil.copy2(source, target)
