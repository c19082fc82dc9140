"""The fusion of several trait vectors into one direction per layer (Guan et al., arXiv 2609.10142, eq. 1 and 5).

Vectors are used with their own norm, and a strength only means something together with it. Rows 0 and N of a file (see
`storage`) cannot be steered with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.errors import ConfigurationError
from bulwark.models.anatomy import blocks_of, check_layer, hidden_size
from bulwark.steering.settings import Fusion, VectorSettings
from bulwark.steering.vectors.storage import read

SMALLEST_NORM = 1e-10
_EPSILON = 1e-8


@dataclass(frozen=True)
class FusedVectors:
    """What a step steers with. at: layer key → v [hidden], fp32. report: plain data for the manifest:

    {"traits", "fusion", "weights", "files": {trait: SHA-256}, "layers": {layer: {"norms": {trait: ‖v_i‖}, "cosines":
    {"a, b": cos}, "rho": mean‖v_i‖ / ‖mean v_i‖, "fused_norm": ‖v‖}}}
    """

    at: dict[int, Tensor]
    report: dict[str, Any]


def fuse(vectors: Tensor, fusion: Fusion = "norm_aligned", weights: tuple[float, ...] | None = None) -> Tensor:
    """Fuse `vectors` [k, hidden] into one [hidden]. With w the weights over their sum (1/k each if None):

    "norm_aligned": s = Σ w_i v_i, scaled to the mean of the norms: s/(‖s‖ + 1e-8) · (1/k) Σ ‖v_i‖ (the paper's; the
        mean is not weighted even if s is).
    "average": (1/k) Σ v_i, without weights.
    "norm_weighted": as the first, scaled to Σ w_i ‖v_i‖.
    For equal weights the first two have the same direction, and their norms the ratio ρ.
    One vector stays as it is. Raises ConfigurationError for weights that do not fit or vectors that cancel each other.
    """
    if len(vectors) == 1:
        return vectors[0].clone()
    exact = vectors.double()
    norms = exact.norm(dim=1)
    if fusion == "average":
        return exact.mean(dim=0).to(vectors.dtype)
    if weights is None and fusion == "norm_weighted":
        raise ConfigurationError('The fusion "norm_weighted" needs weights, one per trait.')
    count = len(vectors)
    given = torch.tensor([1.0] * count if weights is None else weights, dtype=torch.float64, device=exact.device)
    if len(given) != count or not bool(torch.isfinite(given).all()) or abs(float(given.sum())) < 1e-12:
        raise ConfigurationError(f"{list(weights)}: give {count} finite weights whose sum is not 0.")
    shares = given / given.sum()
    total = shares @ exact
    if total.norm() <= 1e-6 * norms.mean():
        raise ConfigurationError("The weighted trait vectors cancel each other; their sum has no direction.")
    scale = norms.mean() if fusion == "norm_aligned" else shares @ norms
    return (total / (total.norm() + _EPSILON) * scale).to(vectors.dtype)


def load_fused(
    settings: VectorSettings, paths: Mapping[str, Path], model: nn.Module, model_digest: str | None = None
) -> FusedVectors:
    """Read the file of every trait and fuse them at every layer that `settings` names.

    paths: {trait: file}. model: the one to be steered. model_digest: `files.digest` of its checkpoint.json; a file that
    was made from another checkpoint is refused.
    Raises ConfigurationError for a layer key outside 1 … N-1, a file of a model of another shape or of another
    checkpoint, a missing layer, and a vector without a direction (norm up to 1e-10).
    """
    layers, hidden = len(blocks_of(model)), hidden_size(model)
    stored = {trait: read(paths[trait], settings.pool) for trait in settings.traits}
    for trait, (rows, description) in stored.items():
        too_few = len(rows) < layers + 1 and not description.get("layers")  # a published file may hold some layers only
        if rows.shape[1] != hidden or len(rows) > layers + 1 or too_few:
            raise ConfigurationError(
                f"{paths[trait]}: holds vectors [{len(rows)}, {rows.shape[1]}] (layers + 1, hidden), but the model has "
                f"{layers} blocks of width {hidden}. They belong to another model."
            )
        made_from = (description.get("model") or {}).get("digest")
        if model_digest and made_from and made_from != model_digest:
            raise ConfigurationError(
                f"{paths[trait]}: the vectors were made from another checkpoint than the one to be steered. "
                "Delete the file, and it is made again."
            )
    at, report = {}, {}
    for layer in settings.layers:
        check_layer(layer, layers, "vectors.layers")
        rows = {trait: _row(rows, layer, paths[trait]) for trait, (rows, _) in stored.items()}
        stacked = torch.stack(list(rows.values()))
        at[layer] = fuse(stacked, settings.fusion, settings.weights)
        report[str(layer)] = _geometry(rows, at[layer])
        if report[str(layer)]["fused_norm"] <= SMALLEST_NORM:
            raise ConfigurationError(f"layer {layer}: the fused vector of {', '.join(rows)} is 0.")
    described = {
        "traits": list(settings.traits),
        "fusion": settings.fusion,
        "pool": settings.pool,
        "weights": list(settings.weights) if settings.weights else None,
        "files": {trait: files.digest(Path(paths[trait])) for trait in settings.traits},
        "layers": report,
    }
    return FusedVectors(at, described)


def _row(rows: Tensor, layer: int, path: Path) -> Tensor:
    known = torch.isfinite(rows).all(dim=1).nonzero().flatten().tolist()
    if layer not in known:
        raise ConfigurationError(f"{path}: has no finite vector at layer key {layer}; it has {known}.")
    if rows[layer].norm() <= SMALLEST_NORM:
        raise ConfigurationError(f"{path}: the vector at layer key {layer} is 0 and has no direction.")
    return rows[layer]


def _geometry(rows: Mapping[str, Tensor], fused: Tensor) -> dict[str, Any]:
    exact = {trait: row.double() for trait, row in rows.items()}
    norms = {trait: float(row.norm()) for trait, row in exact.items()}
    mean = torch.stack(list(exact.values())).mean(dim=0).norm()
    return {
        "norms": norms,
        "cosines": {
            f"{one}, {other}": float(torch.cosine_similarity(exact[one], exact[other], dim=0))
            for one, other in combinations(exact, 2)
        },
        "rho": sum(norms.values()) / len(norms) / float(mean) if mean > 0 else None,
        "fused_norm": float(fused.double().norm()),
    }
