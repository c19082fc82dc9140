"""How harmful and harmless prompts lie in the residual stream of the model before an attack (the table of HERETIC).

It is the geometry of the checkpoint *before* the last step: that of the base model under `heretic`, that of the
defended model under `aside+heretic`. g and b are the mean residuals of harmless and harmful prompts, r = b - g.

    layers                how many layers were looked at
    silhouette            the largest mean silhouette of the two classes over the layers; 1: apart, 0: one cloud
    silhouette_layer      the layer, from 1, at which it is found; the next two are of that layer
    relative_norm         ‖r‖/‖g‖: how large the difference is beside what all prompts share
    cos_means             cos(g, b)

The rows are the prompts' places on each layer's plane, for the figure; `reported.geometry` has the whole table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.abliteration.settings import AttackSettings
from bulwark.analyses import Analysis
from bulwark.analyses.abliteration import read
from bulwark.settings import Closed

METRICS: dict[str, bool | None] = dict.fromkeys(
    ("layers", "silhouette", "silhouette_layer", "relative_norm", "cos_means")
)


class Settings(Closed):
    """Nothing can be set: the step's own `outcome.geometry` says whether it measures this."""


def applies(settings: Closed) -> bool:
    return isinstance(settings, AttackSettings) and settings.outcome.geometry


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the attack did not measure the residuals."""
    table, rows = read(folder, "geometry.json"), read(folder, "projections.jsonl")
    counts = Counter(row["label"] for row in rows if row["layer"] == rows[0]["layer"])
    prompts = sum(counts.values())
    apart = max(table, key=lambda at: at["silhouette"])
    values = {
        "layers": (len(table), len(table)),
        "silhouette": (apart["silhouette"], prompts),
        "silhouette_layer": (apart["layer"], len(table)),
        "relative_norm": (apart["norm_r"] / apart["norm_g"] if apart["norm_g"] else None, prompts),
        "cos_means": (apart["cos_g_b"], prompts),
    }
    return Analysis(values, rows, {"geometry": table, "prompts": dict(counts)})
