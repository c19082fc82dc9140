"""Random weight perturbation: normal noise on every matrix, in proportion to the matrix' own size.

To be put before a fine-tuning attack (`perturb+relearn`): it aims at safeguards that hold only in the neighbourhood
in which they were trained. The authors of TAR say in the review that theirs holds (OpenReview, arXiv 2408.00761).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """scale: standard deviation of the noise, in root mean squares of each matrix of the decoder blocks."""

    scale: float = Field(gt=0)


def run(job: Job, settings: Settings) -> dict[str, Any]:
    import torch

    from bulwark.unlearning.red_team import weights

    def change(model: Any) -> dict[str, Any]:
        generator, count = torch.Generator().manual_seed(job.seed), 0
        for _, matrix in weights.matrices(model):
            matrix.copy_(weights.perturb(matrix, settings.scale, generator))
            count += 1
        return {"matrices": count}

    return weights.rewritten(job, change)
