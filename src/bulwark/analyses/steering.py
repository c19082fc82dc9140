"""How gradients, updates and trajectories align with a trait vector in training (Guan et al., arXiv 2609.10142).

Table 8, Fig. 2 to 4, App. C and E, from the numbers that a step with `analysis` wrote (see
`bulwark.steering.dynamics.analyser`).
"early" and "late" are the step's windows over the training.

    retention_parallel, retention_orthogonal
        mean ‖g∥‖ (‖g⊥‖) in the late window over that in the early one, with g = g∥ + g⊥ the gradient at the vector's
        layer along v and across it; retention_ratio is the first over the second
    aligned_share_early, …_late
        mean ‖g∥‖/‖g‖ in the window
    energy_parallel_<module>_early, …_late
        E∥ = ‖v̂ᵀΔW‖²/‖ΔW‖² of the window's update of o_proj or down_proj; E⊥ is the rest
    x_injection, x_after
        mean push X of the gradient along v̂ while the training is steered and after it. Below 0 it works against the
        vector (protective), above 0 it drifts towards it
    y_<module>_late, y_normalised_<module>_late
        mean Y in the late window, as it is and divided by the norms
    onset_step
        where cos(g, v) settles (App. E), from every step's cosine if the step keeps them, else from the analysed ones;
        null where it does not settle

A window that no analysed step lies in gives null, as does a phase that the training does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.evaluation.metrics import Row
from bulwark.settings import Closed

_MODULES = ("residual", "o_proj", "down_proj")
_WEIGHTS = ("o_proj", "down_proj")
_WINDOWS = ("early", "late")

METRICS: dict[str, bool | None] = {
    name: None
    for name in (
        "retention_parallel",
        "retention_orthogonal",
        "retention_ratio",
        *(f"aligned_share_{window}" for window in _WINDOWS),
        *(f"energy_parallel_{module}_{window}" for module in _WEIGHTS for window in _WINDOWS),
        "x_injection",
        "x_after",
        *(f"{kind}_{module}_late" for kind in ("y", "y_normalised") for module in _MODULES),
        "onset_step",
    )
}


class Settings(Closed):
    """Nothing can be set: what is taken, and when, stands in the step's own `analysis`."""


def applies(settings: Closed) -> bool:
    return getattr(settings, "analysis", None) is not None


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the step wrote nothing to analyse."""
    written = manifest.get("analysis")
    if written is None or not (folder / written["file"]).is_file():
        raise RecordError(
            f"{folder}: the step wrote nothing to analyse. Set `analysis` in its settings, say {{every: 10}}, and "
            "train again, or take the recipe out of what shows the analysis."
        )
    rows = [json.loads(line) for line in (folder / written["file"]).read_text(encoding="utf-8").splitlines()]
    layer = written["layer"]

    def mean(module: str, quantity: str, where: Any, of: Any = lambda value: value) -> tuple[float | None, int]:
        taken = [row for row in _rows_of(rows, layer, module, quantity) if row["value"] is not None and where(row)]
        values = [of(row["value"]) for row in taken]
        return (sum(values) / len(values) if values else None), len(values)

    def within(window: str) -> Any:
        begin, end = written["windows"].get(window, (0, 0))
        return lambda row: begin <= row["step"] < end

    values: dict[str, tuple[float | None, int]] = {}
    for part in ("parallel", "orthogonal"):
        early, late = (mean("residual", f"gradient_{part}", within(window)) for window in _WINDOWS)
        values[f"retention_{part}"] = _over(late[0], early[0]), early[1] + late[1]
    ratio = _over(values["retention_parallel"][0], values["retention_orthogonal"][0])
    values["retention_ratio"] = ratio, values["retention_parallel"][1]
    for window in _WINDOWS:
        values[f"aligned_share_{window}"] = mean("residual", "gradient_cosine", within(window), of=abs)
        for module in _WEIGHTS:
            energy = f"energy_parallel_{window}"
            values[f"energy_parallel_{module}_{window}"] = mean(module, energy, lambda row: True)
    for phase in ("injection", "after"):
        values[f"x_{phase}"] = mean("residual", "x", lambda row, phase=phase: row["phase"] == phase)
    for module in _MODULES:
        for kind in ("y", "y_normalised"):
            values[f"{kind}_{module}_late"] = mean(module, kind, within("late"))
    steps, cosines = _cosines(manifest, rows, layer)
    onset = _onset(steps, cosines)
    values["onset_step"] = onset["step"] if onset["found"] else None, len(cosines)
    reported = {"analysis": written, "gradient_cosine": [steps, cosines], "onset": onset}
    return Analysis({name: values[name] for name in METRICS}, rows, reported)


def _rows_of(rows: Sequence[Row], layer: int, module: str, quantity: str) -> list[Row]:
    key = (layer, module, quantity)
    return [row for row in rows if (row["layer"], row["module"], row["quantity"]) == key]


def _cosines(manifest: Mapping[str, Any], rows: Sequence[Row], layer: int) -> tuple[list[int], list[float | None]]:
    """Steps and cos(g, v) in them: of all steps where the step's own report has them at this layer."""
    steering = manifest.get("steering") or {}
    if steering.get("gradient_layer") == layer and steering.get("gradient_cosine"):
        cosines = steering["gradient_cosine"]
        return list(range(len(cosines))), cosines
    taken = _rows_of(rows, layer, "residual", "gradient_cosine")
    return [row["step"] for row in taken], [row["value"] for row in taken]


def _onset(steps: Sequence[int], cosines: Sequence[float | None]) -> dict[str, Any]:
    """{"step", "found", "band"} of `detect_onset`; without a value at the end of the series nothing is found."""
    from bulwark.steering.schedules import detect_onset

    if not any(value is not None for value in cosines[-max(10, round(0.2 * len(cosines))) :]):
        return {"step": None, "found": False, "band": None}
    onset = detect_onset(cosines)
    return {"step": steps[onset.step], "found": onset.found, "band": list(onset.band)}


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
