"""What projections say of a data set before anything is trained on it (persona vectors, Chen et al. 2025,
arXiv 2507.21509): how far its answers lie along a trait from those that the model gives itself.

All projections here are on unit vectors, as the projection difference is defined. Plain numbers in and out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from bulwark.data.contrasts import NORMAL_LEVELS

Row = Mapping[str, Any]


def screened(rows: Sequence[Row], names: Sequence[str], norms: Sequence[float], subset: int) -> dict[str, Any]:
    """Screen a data set by its rows of `bulwark.steering.vectors.projections.rows_of`, as a whole and by level.

    names: of the single vectors; norms: of the fused vector, then of each of them. Returned, for "fused" and each name,
    null where undefined:
    projection_difference: {"all" or a level: {n, exact, subset, prompt_last}}, each {n, value, stderr}: ΔP, the mean
        over conversations of (data set's answer - model's own); over `subset` of them, for which alone answers would
        be generated; and with the last prompt token in the place of the own answer, for which none would be.
    proxy_correlation: Pearson's r over conversations between the own answer's projection and the last prompt token's.
    separation: {level, or "any" for all that show the trait: {score: AUROC against NORMAL_LEVELS}} of single
        conversations; delta is (data set's answer - own), delta_prompt_last with the last prompt token in its place;
        the others stand alone.
    """
    levels = sorted({str(row["level"]) for row in rows if row["level"] is not None})
    groups = {"all": list(rows)} | {level: [row for row in rows if str(row["level"]) == level] for level in levels}
    normal = [level for level in levels if level in NORMAL_LEVELS]
    result: dict[str, dict[str, Any]] = {"projection_difference": {}, "proxy_correlation": {}, "separation": {}}
    suffixes = ("", *(f"_{name}" for name in names))
    for name, suffix, norm in zip(("fused", *names), suffixes, norms, strict=True):
        scores = {group: [_scores(row, suffix, norm) for row in part] for group, part in groups.items()}
        result["projection_difference"][name] = {group: _differences(part, subset) for group, part in scores.items()}
        pairs = [(score["own"], score["prompt"]) for score in scores["all"] if score["own"] is not None]
        result["proxy_correlation"][name] = _correlation(pairs)
        traited = {level: scores[level] for level in levels if level not in normal}
        untraited = [row for level in normal for row in scores[level]]
        traited["any"] = [row for part in traited.values() for row in part]
        result["separation"][name] = {
            level: {
                score: _auroc([row[score] for row in untraited], [row[score] for row in part])
                for score in ("delta", "delta_prompt_last", "response", "prompt")
            }
            for level, part in traited.items()
            if normal
        }
    return result


def _scores(row: Row, suffix: str, norm: float) -> dict[str, float | None]:
    response, prompt = (row[f"{column}_projection{suffix}"] / norm for column in ("response", "prompt"))
    own = row[f"ref_projection{suffix}"] / norm if row["n_baseline"] is not None else None
    return {
        "own": own,
        "response": response,
        "prompt": prompt,
        "delta": None if own is None else response - own,
        "delta_prompt_last": response - prompt,
    }


def _differences(scores: Sequence[Mapping[str, float | None]], subset: int) -> dict[str, Any]:
    from bulwark.evaluation.statistics import mean_and_error

    exact = [score["delta"] for score in scores if score["delta"] is not None]
    estimates = {
        "exact": exact,
        "subset": random.Random(0).sample(exact, min(subset, len(exact))),
        "prompt_last": [score["delta_prompt_last"] for score in scores],
    }
    result: dict[str, Any] = {"n": len(scores)}
    for name, values in estimates.items():
        value, stderr = mean_and_error(values)
        result[name] = {"n": len(values), "value": value, "stderr": stderr}
    return result


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's r; None for fewer than three pairs or a constant side."""
    import numpy as np

    columns = np.array(pairs).T
    if len(pairs) < 3 or any(np.ptp(column) == 0 for column in columns):
        return None
    return float(np.corrcoef(columns)[0, 1])


def _auroc(negatives: Sequence[float | None], positives: Sequence[float | None]) -> float | None:
    from sklearn.metrics import roc_auc_score

    known = [(value, side) for side, part in enumerate((negatives, positives)) for value in part if value is not None]
    if len({side for _, side in known}) < 2:
        return None
    return float(roc_auc_score([side for _, side in known], [value for value, _ in known]))
