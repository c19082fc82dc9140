"""How harmful and harmless prompts lie in the residual stream, layer by layer (the table of HERETIC).

Per layer 1 … L: cosines and norms of the class means, their geometric medians (marked *) and the differences r = b - g,
and the silhouette of the two classes (Euclidean). Projections on a plane are per layer: the first axis is the
difference of the means, the second the direction of most variance across it, so that they can be read without a
learned embedding; HERETIC draws PaCMAP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bulwark.abliteration.measure.directions import normalised
from bulwark.models.residuals import Residuals

_WEISZFELD_STEPS = 100
_CLOSE = 1e-10
_COSINES = (("g", "b"), ("g*", "b*"), ("g", "r"), ("g*", "r*"), ("b", "r"), ("b*", "r*"))


def table(harmful: Residuals, harmless: Residuals) -> list[dict[str, float]]:
    """One row per layer from 1; both need their rows."""
    from sklearn.metrics import silhouette_score

    rows = []
    for layer in range(1, harmful.mean.shape[0]):
        bad, good = harmful.layer(layer), harmless.layer(layer)
        vectors = {"g": good.mean(0), "b": bad.mean(0), "g*": geometric_median(good), "b*": geometric_median(bad)}
        vectors |= {"r": vectors["b"] - vectors["g"], "r*": vectors["b*"] - vectors["g*"]}
        labels = [1] * len(bad) + [0] * len(good)
        rows.append(
            {
                "layer": layer,
                **{f"cos_{a}_{b}": float(normalised(vectors[a]) @ normalised(vectors[b])) for a, b in _COSINES},
                **{f"norm_{name}": float(vectors[name].norm()) for name in ("g", "g*", "b", "b*", "r", "r*")},
                "silhouette": float(silhouette_score(torch.cat([bad, good]).numpy(), labels)),
            }
        )
    return rows


def projections(harmful: Residuals, harmless: Residuals, layer: int) -> list[dict[str, Any]]:
    """One row per prompt: its place on the plane of this layer, harmless ones on the left."""
    bad, good = harmful.layer(layer), harmless.layer(layer)
    first = normalised(bad.mean(0) - good.mean(0))
    centre = 0.5 * (bad.mean(0) + good.mean(0))
    rows = torch.cat([bad, good]) - centre
    x = rows @ first
    rest = rows - x[:, None] * first
    second = torch.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0]
    y = rest @ second
    y = y if float(y[y.abs().argmax()]) >= 0 else -y  # a sign that does not depend on the decomposition
    labels = ["harmful"] * len(bad) + ["harmless"] * len(good)
    return [
        {"layer": layer, "label": label, "x": float(a), "y": float(b)} for label, a, b in zip(labels, x, y, strict=True)
    ]


def geometric_median(rows: Tensor) -> Tensor:
    """The point of least summed distance to the rows [n, hidden], by Weiszfeld's iteration."""
    point = rows.mean(0)
    for _ in range(_WEISZFELD_STEPS):
        weights = 1 / (rows - point).norm(dim=1).clamp(min=_CLOSE)
        new = (weights[:, None] * rows).sum(0) / weights.sum()
        if float((new - point).norm()) <= _CLOSE * max(float(point.norm()), 1.0):
            return new
        point = new
    return point
