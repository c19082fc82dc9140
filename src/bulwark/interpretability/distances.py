"""How far the embedding of a token as data lies from that as an instruction, and both from another model's.

The metrics of the authors' embd_metrics.py (arXiv 2503.10566): cosine, Euclidean and largest distance, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bulwark.data.records import EmbeddingRole, role_numbers
from bulwark.errors import BulwarkError
from bulwark.models.embeddings import RoleEmbedding, role_embedding_of

MEASURES = ("cosine", "l2", "linf")
PERCENTILES = (5, 10, 50, 90, 95)
_ROWS = 4096  # of the embedding that are compared at once


def distances(one: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Row by row of two [rows, hidden]: cosine, Euclidean distance, largest distance of a component.

    The cosine with a row of zeros is 0.
    """
    one, other = one.double(), other.double()
    return {
        "cosine": torch.nn.functional.cosine_similarity(one, other, dim=-1),
        "l2": (one - other).norm(dim=-1),
        "linf": (one - other).abs().amax(dim=-1),
    }


def of_roles(model: nn.Module, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """{measure: [ids]} between each id as an instruction and as data; None takes every row of the embedding."""
    return _compared((model, "instruction"), (model, "data"), ids)


def between(model: nn.Module, other: nn.Module, role: EmbeddingRole, ids: Sequence[int] | None = None):
    """{measure: [ids]} between the embeddings of two models in the same role.

    Raises BulwarkError if their embeddings differ in shape.
    """
    return _compared((model, role), (other, role), ids)


def summary(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation (ddof 0), minimum, maximum, and the percentiles 5, 10, 50, 90, 95."""
    ordered = torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64)
    # Not torch.quantile, which refuses as many values as a vocabulary may have.
    ranked = values.double().sort().values
    places = ordered * (len(ranked) - 1)
    low, high = ranked[places.floor().long()], ranked[places.ceil().long()]
    at = low + (high - low) * (places - places.floor())
    named = {f"p{p}": float(value) for p, value in zip(PERCENTILES, at, strict=True)}
    spread = {"mean": float(values.mean()), "std": float(values.std(correction=0))}
    return spread | {"min": float(ranked[0]), "max": float(ranked[-1])} | named


def _compared(one: tuple[nn.Module, str], other: tuple[nn.Module, str], ids: Sequence[int] | None) -> dict[str, Tensor]:
    first, second = (role_embedding_of(model) for model, _ in (one, other))
    if first.weight.shape != second.weight.shape:
        raise BulwarkError(
            f"One embedding is {tuple(first.weight.shape)}, the other {tuple(second.weight.shape)}: they cannot be "
            "compared row by row. Compare checkpoints of one base model."
        )
    wanted = torch.arange(first.num_embeddings) if ids is None else torch.tensor(list(ids))
    parts = [
        distances(*(_embedded(embedding, chunk, role) for embedding, role in ((first, one[1]), (second, other[1]))))
        for chunk in _chunks(wanted)
    ]
    return {measure: torch.cat([part[measure] for part in parts]) for measure in MEASURES}


def _embedded(embedding: RoleEmbedding, ids: Tensor, role: str) -> Tensor:
    number = role_numbers(embedding.roles)[role]
    with torch.inference_mode():
        return embedding((ids + embedding.num_embeddings * number).to(embedding.weight.device)).cpu()


def _chunks(ids: Tensor) -> Iterator[Tensor]:
    return iter(ids.split(_ROWS))
