"""ICONOCLAST: HERETIC's search with directions that keep off what benign prompts use (spec B).

The default is the method as its documents state it, corrected where its code does otherwise: benign subspace and mean
are taken out jointly and at the layers that are edited, so that what is to be preserved is; the front is a true one;
the exported weights are the chosen trial's. `config/steps/iconoclast_published.yaml` is the code as it is.
"""

from __future__ import annotations

from typing import Any

from bulwark.abliteration.attack import METHOD, attack
from bulwark.abliteration.settings import AttackSettings
from bulwark.jobs.job import Job

__all__ = ["METHOD", "Settings", "run"]

STAGE = "generate"  # no gradients: one device that holds the model


class Settings(AttackSettings):
    """See `bulwark.abliteration.settings`; config/steps/iconoclast.yaml has the values, with their origin."""


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Attack the parent and save the chosen trial."""
    return attack(job, settings)
