"""Analyses: what the records of a training tell, in files like those of benchmarks. One module each, found by its name.

A benchmark asks a finished model; an analysis reads what the last step of a recipe wrote down while it trained. Its
file has the schema of a scores file, with the analysis' name under "benchmark", so that tables, figures and claims
show both alike.

An analysis has
    Settings                      what can be set
    METRICS                       {metric: whether higher is better, None where neither is}
    applies(settings)             whether a step with these settings leaves behind what is analysed
    analyse(manifest, folder, settings)   an `Analysis` of the checkpoint in `folder`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from bulwark.evaluation.metrics import Metric, Row, identity_of, without_model, write_scores
from bulwark.settings import Closed, module_named, validated


@dataclass(frozen=True)
class Analysis:
    """The outcome of an analysis.

    values: {metric: (value or None, of how many observations it is made)}. rows: what figures draw. reported: further
    plain data.
    """

    values: Mapping[str, tuple[float | None, int]]
    rows: list[Row]
    reported: dict[str, Any] = field(default_factory=dict)


def module_of(name: str) -> ModuleType:
    """Import the analysis module `name`. Raises ConfigurationError with the nearest name if there is none."""
    return module_named(__name__, name, "analysis module")


def analyse_file(
    *, checkpoint: Path, module: str, settings: Mapping[str, Any], identity: Mapping[str, Any], scores: Path
) -> dict[str, Any]:
    """Analyse the checkpoint with the manifest `checkpoint`: write `scores` (JSON) and, beside it, the rows.

    identity: benchmark (the analysis' name), model, recipe, seed. Standard errors and intervals are null: one training
    is one observation, and what it varies by is seen over seeds. Of a trial that diverged all metrics are null.
    Raises CheckpointError for no finished checkpoint, and what the analysis raises where its records are missing.
    """
    from bulwark import files, seals
    from bulwark.models import manifests

    checkpoint, scores = Path(checkpoint), Path(scores)
    analysis = module_of(module)
    if (reason := manifests.divergence(checkpoint)) is not None:
        noted = {**manifests.provenance(), "module": module, "diverged": reason}
        return write_scores(scores, {**identity_of(identity), **without_model(analysis.METRICS, noted)}, [])
    chosen = validated(analysis.Settings, settings, f"settings of the analysis {module}")
    manifest = manifests.read_manifest(checkpoint, verify=False)
    written = [entry for entry in manifest["files"] if not manifests.holds_weights(entry["name"])]
    seals.verify_files(checkpoint, written)  # all that an analysis reads
    analysed = analysis.analyse(manifest, checkpoint.parent, chosen)
    result = {
        **identity_of(identity),
        "n": len(analysed.rows),
        "metrics": {
            name: Metric(value=value, stderr=None, interval=None, n=n, higher_is_better=analysis.METRICS[name])
            for name, (value, n) in analysed.values.items()
        },
        "breakdowns": {},
        "reported": analysed.reported,
        "provenance": {
            **manifest["provenance"],
            "module": module,
            "settings": chosen.model_dump(mode="json"),
            "checkpoint_digest": files.digest(checkpoint),
        },
    }
    return write_scores(scores, result, analysed.rows)


def applies(module: str, settings: Closed | None) -> bool:
    """Whether the analysis can be made of a step with these settings; None stands for the base model, never trained."""
    return settings is not None and module_of(module).applies(settings)
