"""Magnitude pruning: the smallest weights of every matrix become 0 (Han et al. 2015, arXiv 1506.02626).

It aims at safeguards that rest on small weights, as fine-tuning changes weights by little. The compression audit of
TAR-Bio-v2 prunes 10 % to 50 % and finds nothing brought back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """fraction: of the entries of each matrix of the decoder blocks, by magnitude, that become 0."""

    fraction: float = Field(gt=0, lt=1)


def run(job: Job, settings: Settings) -> dict[str, Any]:
    from bulwark.unlearning.red_team import weights

    def change(model: Any) -> dict[str, Any]:
        zeros = total = count = 0
        for _, matrix in weights.matrices(model):
            matrix.copy_(weights.prune(matrix, settings.fraction))
            zeros, total, count = zeros + int((matrix == 0).sum()), total + matrix.numel(), count + 1
        return {"matrices": count, "zero_share": zeros / total}

    return weights.rewritten(job, change)
