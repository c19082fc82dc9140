"""Intervention delta preservation: steer, then train on without letting go of what steering did to the weights.

Guan et al., arXiv 2609.10142, Sec. 4.1 and Table 2, where it does not help (traits 8.12 / 8.82 / 9.00 of 9, without
defence 7.38 / 8.66 / 9.00). That was tested by projecting gradients on a random part of ΔW's range, under AdamW;
variants of this step project the update instead, which really keeps the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from bulwark.steering.preservation.settings import PreservationSettings, check_training
from bulwark.steering.settings import InterventionSettings, VectorTraining

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(VectorTraining):
    """vectors, intervention: of the steered phase. preservation: when it ends and what holds from then on."""

    intervention: InterventionSettings = InterventionSettings()
    preservation: PreservationSettings

    @model_validator(mode="after")
    def _trainable(self) -> Settings:
        check_training(self.training, self.preservation, self.preservation.moments)
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Steered up to the boundary and bound to ΔW from there on; preservation.jsonl records each matrix."""
    from bulwark.steering.preservation.preservation import Preservation
    from bulwark.steering.steer import begin

    vectors, every = begin(course, settings.vectors), settings.training.log_every
    return Preservation(course, vectors, settings.intervention, settings.preservation, log_every=every)
