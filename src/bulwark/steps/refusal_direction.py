"""Ablation of one refusal direction (Arditi et al. 2024, arXiv 2406.11717): chosen among layers and positions, λ = 1.

The simplest of the attacks, without a search: `<recipe>+refusal_direction`.
"""

from __future__ import annotations

from typing import Any

from bulwark.abliteration.directed import METHOD, attack_with_one_direction
from bulwark.abliteration.settings import RefusalDirectionSettings
from bulwark.jobs.job import Job

__all__ = ["METHOD", "Settings", "run"]

STAGE = "generate"  # no gradients: one device that holds the model


class Settings(RefusalDirectionSettings):
    """See `bulwark.abliteration.settings`; config/steps/refusal_direction.yaml has the authors' values."""


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Attack the parent and save the result."""
    return attack_with_one_direction(job, settings)
