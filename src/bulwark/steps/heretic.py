"""HERETIC: search for the ablation of a refusal direction that refuses least at the smallest KL (spec A).

p-e-w/heretic 1.4 as its authors publish it: directions are differences of means with the mean harmless residual taken
out, weights are edited with their row norms kept, and Optuna chooses direction, strength and layers. As a red team's
attack it measures a defense: `<recipe>+heretic`.
"""

from __future__ import annotations

from typing import Any

from bulwark.abliteration.attack import METHOD, attack
from bulwark.abliteration.settings import AttackSettings
from bulwark.jobs.job import Job

__all__ = ["METHOD", "Settings", "run"]

STAGE = "generate"  # no gradients: one device that holds the model


class Settings(AttackSettings):
    """See `bulwark.abliteration.settings`; config/steps/heretic.yaml has HERETIC's values, with their origin."""


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Attack the parent and save the chosen trial."""
    return attack(job, settings)
