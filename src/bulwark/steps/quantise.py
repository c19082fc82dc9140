"""Quantisation: every matrix is rounded to 8 or 4 bits, and stored as the weights that this gives.

So every benchmark runs on it without a kernel of its own. int8 is rounding to the nearest with one scale for each row
(as LLM.int8() does to weights, Dettmers et al. 2022, arXiv 2208.07339, without its outliers), nf4 the 4-bit
NormalFloat of QLoRA (Dettmers et al. 2023, arXiv 2305.14314) in blocks of 64 with scales in float32. It aims at
safeguards that rest on changes smaller than a level; rounding has undone unlearning (Zhang et al. 2024, arXiv
2410.16454).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """format: "int8" or "nf4". block: entries that share a scale, row by row; None for one scale a row."""

    format: Literal["int8", "nf4"]
    block: int | None = Field(None, ge=2)


def run(job: Job, settings: Settings) -> dict[str, Any]:
    from bulwark.unlearning.red_team import weights

    def change(model: Any) -> dict[str, Any]:
        squares = errors = count = 0
        for _, matrix in weights.matrices(model):
            rounded = weights.quantise(matrix, settings.format, settings.block)
            squares += float(matrix.float().square().sum())
            errors += float((rounded.float() - matrix.float()).square().sum())
            matrix.copy_(rounded)
            count += 1
        return {"matrices": count, "relative_error": (errors / squares) ** 0.5}

    return weights.rewritten(job, change)
