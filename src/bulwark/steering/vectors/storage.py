"""The file of a trait's vectors: ours, and those that persona vectors' code and its users save.

A file holds one row per layer key (see `CONVENTION`), raw differences of means, never normalised. Persona vectors' code
takes row N after the final norm, out of residual-stream space.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bulwark import files, seals
from bulwark.errors import BulwarkError
from bulwark.models import manifests
from bulwark.steering.settings import Pool

CONVENTION = "row l is the residual stream after block l (from 1); row 0 the embeddings; row N before the final norm"
# What a file's tensors are called: the first is what files of others have.
TENSORS: dict[Pool, str] = {"response_mean": "vectors", "prompt_mean": "prompt_mean", "prompt_last": "prompt_last"}
_MOST_LAYERS = 10_000  # no model has as many


def write(path: Path, vectors: Tensor, description: Mapping[str, Any], **further: Tensor) -> None:
    """Write `vectors` [N+1, hidden] with a description of them; the file appears whole or not at all.

    further: other tensors of the same shape (prompt_mean, prompt_last). Layer convention and norms are added to the
    description. A row of NaN stands for a layer that is not known.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in further.items()}
    tensors["vectors"] = vectors.detach().float().cpu().contiguous()
    norms = [None if math.isnan(norm) else norm for norm in tensors["vectors"].norm(dim=1).tolist()]
    whole = {"convention": CONVENTION, **description, "norms": norms}
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, metadata={"description": json.dumps(whole, ensure_ascii=False, allow_nan=False)})
    files.readable(temporary)
    os.replace(temporary, path)


def read(path: Path, pool: Pool = "response_mean") -> tuple[Tensor, dict[str, Any]]:
    """A file's vectors [N+1, hidden] in fp32, as means over the tokens of `pool`, and its description.

    Raises CheckpointError if it was changed since it was made, BulwarkError for a file of another kind, and for a
    published file, which holds one pool only, if another is asked for.
    """
    seals.checked(path)
    name = TENSORS[pool]
    try:
        with safe_open(path, framework="pt") as file:
            if name not in file.keys() and TENSORS["response_mean"] in file.keys():  # noqa: SIM118 - no mapping
                raise BulwarkError(
                    f"{path}: has vectors over the response only. Set vectors.pool (of a trait's choice: pool) to "
                    "response_mean, or have the vectors extracted here by leaving the file out of "
                    "config/traits/<trait>.yaml."
                )
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
    description = {
        "trait": trait,
        "model": {"model": model},
        "layers": sorted(payload) if isinstance(payload, dict) else None,
        "source": {"path": str(path), "sha256": files.digest(Path(path))},
        "provenance": manifests.provenance(),
    }
    write(output, read_published(path), description)


def _payload(path: Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise BulwarkError(f"{path}: there is no such file of trait vectors.")
    if path.suffix != ".safetensors":
        return _pickled(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = names[0] if len(names) == 1 else "vectors"
            if name not in names:
                raise BulwarkError(f'{path}: holds {", ".join(names)}; one of them should be named "vectors".')
            return file.get_tensor(name)
    except SafetensorError as error:
        raise BulwarkError(f"{path}: not a whole safetensors file ({error}).") from None


def _rows(path: Path, payload: Any) -> Tensor:
    """A payload as one tensor [N+1, hidden]."""
    if isinstance(payload, Tensor):
        if payload.dim() != 2 or not payload.is_floating_point():
            raise BulwarkError(f"{path}: expected a tensor [layers + 1, hidden], found a {_described(payload)}.")
        return payload.float()
    if not isinstance(payload, dict) or not payload:
        raise BulwarkError(f"{path}: expected a tensor or {{layer key: tensor}}, found a {_described(payload)}.")
    for key, row in payload.items():
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < _MOST_LAYERS:
            raise BulwarkError(f"{path}: layer keys are whole numbers from 0, below {_MOST_LAYERS}; found {key!r}.")
        if not isinstance(row, Tensor) or row.dim() != 1 or not row.is_floating_point():
            raise BulwarkError(f"{path}: layer key {key} should hold a tensor [hidden], found a {_described(row)}.")
    widths = sorted({len(row) for row in payload.values()})
    if len(widths) > 1:
        raise BulwarkError(f"{path}: the layers' vectors have different sizes: {widths}.")
    rows = torch.full((max(payload) + 1, widths[0]), torch.nan)
    for key, row in payload.items():
        rows[key] = row.float()
    return rows


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle ends the unpickler in whatever way its first bytes lead to
        raise BulwarkError(
            f"{path}: cannot be read as tensors and nothing else ({type(error).__name__}). It is broken, or it holds "
            "other objects, which are not loaded. Save it again as a plain tensor [layers + 1, hidden]."
        ) from error


def _described(value: Any) -> str:
    return f"tensor {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
