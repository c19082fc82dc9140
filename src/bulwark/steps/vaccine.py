"""Vaccine: alignment that stands a perturbation of the hidden states (Huang et al. 2024, arXiv 2402.01109)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.immunisation.settings import VaccineSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(VaccineSettings):
    """Data, the perturbation and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training under the perturbation."""
    from bulwark.unlearning.immunisation.perturbation import Perturbation

    return Perturbation(course, settings)
