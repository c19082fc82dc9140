"""Trait vectors: their file, reading the authors' files, and the fusion of several into one direction per layer.

A vector of a trait has one row per layer key: row 0 is the embeddings' and row l the residual stream h_l after block l.
Row N is taken before the final norm (persona vectors' code takes it after it, out of residual-stream space), yet
neither row 0 nor row N can be steered with. Rows are raw differences of means, never normalised: a strength only means
something together with the norm (Guan et al., arXiv 2609.10142, eq. 1 and 5, and the authors' code).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bulwark import manifests
from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.blocks import check_layer
from bulwark.steering.settings import Fusion, VectorSettings

CONVENTION = "row l is the residual stream after block l (from 1); row 0 the embeddings; row N before the final norm"
SMALLEST_NORM = 1e-10
_MOST_LAYERS = 10_000  # no model has as many
_EPSILON = 1e-8


@dataclass(frozen=True)
class FusedVectors:
    """What a step steers with. at: layer key → v [hidden], fp32. report: plain data for the manifest:

    {"traits", "fusion", "weights", "files": {trait: SHA-256}, "layers": {layer: {"norms": {trait: ‖v_i‖}, "cosines":
    {"a, b": cos}, "rho": mean‖v_i‖ / ‖mean v_i‖, "fused_norm": ‖v‖}}}
    """

    at: dict[int, Tensor]
    report: dict[str, Any]


def write(path: Path, vectors: Tensor, description: Mapping[str, Any], **further: Tensor) -> None:
    """Write `vectors` [N+1, hidden] with what is told of them; the file appears whole or not at all.

    further: other tensors of the same shape (prompt_mean, prompt_last). Layer convention and norms are added to the
    description. A row of NaN stands for a layer that is not known.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in further.items()}
    tensors["vectors"] = vectors.detach().float().cpu().contiguous()
    norms = [None if math.isnan(norm) else norm for norm in tensors["vectors"].norm(dim=1).tolist()]
    told = {"convention": CONVENTION, **description, "norms": norms}
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, metadata={"description": json.dumps(told, ensure_ascii=False, allow_nan=False)})
    manifests.readable(temporary)
    os.replace(temporary, path)


def read(path: Path, name: str = "vectors") -> tuple[Tensor, dict[str, Any]]:
    """A file's tensor `name` [N+1, hidden] in fp32, and its description. Raises BulwarkError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            vectors = file.get_tensor(name)
            description = json.loads((file.metadata() or {})["description"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BulwarkError(
            f"{path}: not a file of trait vectors ({error}). Make it again; a file of another origin is adopted by "
            "naming it in config/traits/<trait>.yaml under files."
        ) from None
    if vectors.dim() != 2:
        raise BulwarkError(f"{path}: {name} should be [layers + 1, hidden], found {list(vectors.shape)}.")
    return vectors.float(), description


def read_published(path: Path) -> Tensor:
    """Read vectors as persona vectors' code and its users save them: [N+1, hidden] fp32, NaN where a layer is missing.

    Accepted: a .pt file with a tensor [N+1, hidden] or with {layer key: tensor [hidden]}, read without running what is
    pickled in it; a .safetensors file with one such tensor ("vectors" if it has several). Raises BulwarkError for
    anything else, with what was found.
    """
    rows = _rows(path, _payload(path))
    if not bool(torch.isfinite(rows).all(dim=1).any()) or not rows.shape[1]:
        raise BulwarkError(f"{path}: holds {list(rows.shape)} numbers, and no layer of which all are finite.")
    return rows


def adopt(path: Path, trait: str, model: str, output: Path) -> None:
    """Write a published file as one of ours, with where it came from. Its row N may be one after the final norm.

    Raises BulwarkError as `read_published` does.
    """
    payload = _payload(path)
    told = {
        "trait": trait,
        "model": {"model": model},
        "layers": sorted(payload) if isinstance(payload, dict) else None,
        "source": {"path": str(path), "sha256": manifests.digest(Path(path))},
        "provenance": manifests.provenance(),
    }
    write(output, read_published(path), told)


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
    shares = _shares(weights, len(vectors), fusion).to(exact.device)
    total = shares @ exact
    if total.norm() <= 1e-6 * norms.mean():
        raise ConfigurationError("The weighted trait vectors cancel each other; their sum has no direction.")
    scale = norms.mean() if fusion == "norm_aligned" else shares @ norms
    return (total / (total.norm() + _EPSILON) * scale).to(vectors.dtype)


def load_fused(
    settings: VectorSettings,
    paths: Mapping[str, Path],
    *,
    layers: int,
    hidden: int,
    model_digest: str | None = None,
) -> FusedVectors:
    """Read the file of every trait and fuse them at every layer that `settings` names.

    paths: {trait: file}. layers, hidden: N and H of the model to be steered. model_digest: `manifests.digest` of the
    checkpoint.json that is steered; a file that was made from another checkpoint is refused.
    Raises ConfigurationError for a layer key outside 1 … N-1, a file of a model of another shape or of another
    checkpoint, a missing layer, and a vector without a direction (norm up to 1e-10).
    """
    files = {trait: read(paths[trait]) for trait in settings.traits}
    for trait, (rows, told) in files.items():
        too_few = len(rows) < layers + 1 and not told.get("layers")  # a published file may hold some layers only
        if rows.shape[1] != hidden or len(rows) > layers + 1 or too_few:
            raise ConfigurationError(
                f"{paths[trait]}: holds vectors [{len(rows)}, {rows.shape[1]}] (layers + 1, hidden), but the model has "
                f"{layers} blocks of width {hidden}. They belong to another model."
            )
        made_from = (told.get("model") or {}).get("digest")
        if model_digest and made_from and made_from != model_digest:
            raise ConfigurationError(
                f"{paths[trait]}: the vectors were made from another checkpoint than the one to be steered. "
                "Delete the file, and it is made again."
            )
    at, report = {}, {}
    for layer in settings.layers:
        check_layer(layer, layers, "vectors.layers")
        rows = {trait: _row(rows, layer, paths[trait]) for trait, (rows, _) in files.items()}
        stacked = torch.stack(list(rows.values()))
        at[layer] = fuse(stacked, settings.fusion, settings.weights)
        report[str(layer)] = _geometry(rows, at[layer])
        if report[str(layer)]["fused_norm"] <= SMALLEST_NORM:
            raise ConfigurationError(f"layer {layer}: the fused vector of {', '.join(rows)} is 0.")
    told = {
        "traits": list(settings.traits),
        "fusion": settings.fusion,
        "weights": list(settings.weights) if settings.weights else None,
        "files": {trait: manifests.digest(Path(paths[trait])) for trait in settings.traits},
        "layers": report,
    }
    return FusedVectors(at, told)


def _row(rows: Tensor, layer: int, path: Path) -> Tensor:
    known = [key for key in range(len(rows)) if bool(torch.isfinite(rows[key]).all())]
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


def _shares(weights: tuple[float, ...] | None, count: int, fusion: str) -> Tensor:
    if weights is None:
        if fusion == "norm_weighted":
            raise ConfigurationError('The fusion "norm_weighted" needs weights, one per trait.')
        return torch.full((count,), 1 / count, dtype=torch.float64)
    given = torch.tensor(weights, dtype=torch.float64)
    if len(given) != count or not bool(torch.isfinite(given).all()) or abs(float(given.sum())) < 1e-12:
        raise ConfigurationError(f"{list(weights)}: give {count} finite weights whose sum is not 0.")
    return given / given.sum()


def _payload(path: Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise BulwarkError(f"{path}: there is no such file of trait vectors.")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _rows(path: Path, payload: Any) -> Tensor:
    """A payload as one tensor [N+1, hidden]."""
    if isinstance(payload, Tensor):
        if payload.dim() != 2 or not payload.is_floating_point():
            raise BulwarkError(f"{path}: expected a tensor [layers + 1, hidden], found {_described(payload)}.")
        return payload.float()
    if not isinstance(payload, dict) or not payload:
        raise BulwarkError(f"{path}: expected a tensor or {{layer key: tensor}}, found {_described(payload)}.")
    for key, row in payload.items():
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < _MOST_LAYERS:
            raise BulwarkError(f"{path}: layer keys are whole numbers from 0, below {_MOST_LAYERS}; found {key!r}.")
        if not isinstance(row, Tensor) or row.dim() != 1 or not row.is_floating_point():
            raise BulwarkError(f"{path}: layer key {key} should hold a tensor [hidden], found {_described(row)}.")
    widths = sorted({len(row) for row in payload.values()})
    if len(widths) > 1:
        raise BulwarkError(f"{path}: the layers' vectors have different sizes: {widths}.")
    rows = torch.full((max(payload) + 1, widths[0]), torch.nan)
    for key, row in payload.items():
        rows[key] = row.float()
    return rows


def _safetensors(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = names[0] if len(names) == 1 else "vectors"
            if name not in names:
                raise BulwarkError(f'{path}: holds {", ".join(names)}; one of them should be named "vectors".')
            return file.get_tensor(name)
    except SafetensorError as error:
        raise BulwarkError(f"{path}: not a whole safetensors file ({error}).") from None


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle ends the unpickler in whatever way its first bytes lead to
        raise BulwarkError(
            f"{path}: cannot be read as tensors and nothing else ({type(error).__name__}). It is broken, or it holds "
            "other objects, which are not loaded. Save it again as a plain tensor [layers + 1, hidden]."
        ) from error


def _described(value: Any) -> str:
    return (
        f"a tensor {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    )
