"""A model on the line through two others: θ = θ_parent + weight · (θ_other - θ_parent).

Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089) as an attack that takes no data: with the base model as the
other one it takes back a part of what a defense did, beyond 1 more than all of it, below 0 it goes on in the defense's
direction. It aims at defenses whose effect is one direction in weight space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """weight: 0 is the parent, 1 the other model. other: the recipe of the other model, of the same base and seed.

    rank: only so many leading singular directions of each matrix's difference are taken back, and nothing of vectors;
    all of it if null.
    """

    weight: float
    other: str = Field("base", pattern=r"^[A-Za-z0-9_@.+-]+$")
    rank: int | None = Field(None, ge=1, exclude_if=lambda rank: rank is None)

    def inputs(self) -> dict[str, str]:
        return {"other": f"checkpoints/{{model}}/{self.other}/seed{{seed}}/checkpoint.json"} | super().inputs()


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Both models are held in memory at once, in the dtype in which they are stored."""
    from bulwark.models import checkpoints, manifests
    from bulwark.unlearning.red_team import weights

    _, folder, _ = manifests.open_manifest(job.inputs["other"])
    other = checkpoints.load_model(folder, dtype="auto")
    return weights.rewritten(
        job, lambda model: {"parameters": weights.interpolate_models(model, other, settings.weight, settings.rank)}
    )
