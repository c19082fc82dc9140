"""Booster: a step of fine-tuning on harmful data shall help an attacker less (Huang et al. 2024, arXiv 2409.01586)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.immunisation.settings import AttenuationSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(AttenuationSettings):
    """Data, harmful data, the term and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training with the attenuation term."""
    from bulwark.unlearning.immunisation.attenuation import Attenuation

    return Attenuation(course, settings)
