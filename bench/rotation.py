"""The quarter turn against the authors' way, a dense product with the rotation matrix on the data tokens' rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.timing import Ratio, ratio
from bulwark.models.embeddings import RoleEmbedding, rotate, rotate_by

HIDDEN, TOKENS, DATA_SHARE = 4096, 4096, 0.6


def run() -> Iterator[Ratio]:
    """Dense product over quarter turn, forward, at hidden size 4096; the two agree to the dtype's precision."""
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
        data = torch.rand(TOKENS, generator=generator) < DATA_SHARE
        matrix = rotate(torch.eye(HIDDEN)).to(dtype)
        plain = torch.nn.Embedding(8, HIDDEN, dtype=dtype)
        embedding = RoleEmbedding(plain, {"method": "aside"})
        roles = torch.where(data, 2, 1)

        def dense(x=x, data=data, matrix=matrix) -> torch.Tensor:
            turned = x.clone()
            turned[data] = x[data] @ matrix
            return turned

        def quarter_turn(x=x, roles=roles, embedding=embedding) -> torch.Tensor:
            return embedding.with_roles(x, roles)

        with torch.no_grad():
            assert torch.allclose(dense(), quarter_turn(), atol=1e-2)
            name = str(dtype).removeprefix("torch.")
            yield ratio(
                f"dense product / quarter turn, {TOKENS} × {HIDDEN}, {name}", dense, quarter_turn, "> 1", rounds=3
            )
            yield ratio(
                f"quarter turn / copy, {TOKENS} × {HIDDEN}, {name}", quarter_turn, lambda x=x: x.clone(), rounds=5
            )
    angle = torch.randn(TOKENS, HIDDEN)
    yield ratio("any angle / quarter turn, float32", lambda: rotate_by(angle, 1.0), lambda: rotate(angle), rounds=5)
