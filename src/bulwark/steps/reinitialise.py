"""Re-initialised heads: the output embedding or the last blocks are drawn anew, to be trained again by an adversary.

To be put before a fine-tuning attack (`reinitialise+relearn`). It is ours, and aims at TAR and max entropy: a
safeguard that lies in the last layers, which make the output flat while the knowledge is still in the layers before
them, goes with these layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """output_embedding: draw it anew. last_blocks: how many decoder blocks, from the end. The job's seed decides."""

    output_embedding: bool = False
    last_blocks: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Settings:
        if not self.output_embedding and not self.last_blocks:
            raise ValueError("nothing is drawn anew; set output_embedding: true, or last_blocks")
        return self


def run(job: Job, settings: Settings) -> dict[str, Any]:
    from bulwark.unlearning.red_team import weights

    def change(model: Any) -> dict[str, Any]:
        parts = weights.reinitialise(model, settings.output_embedding, settings.last_blocks, job.seed)
        return {"parts": parts}

    return weights.rewritten(job, change)
