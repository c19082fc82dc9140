"""Intervention delta preservation: steer, then train on without letting go of what steering did to the weights.

Guan et al., arXiv 2609.10142, Sec. 4.1 and Table 2, where it does not help (traits 8.12 / 8.82 / 9.00 of 9, without
defence 7.38 / 8.66 / 9.00). That was tested by projecting gradients on a random part of ΔW's range, under AdamW;
variants of this step project the update instead, which really keeps the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from bulwark.jobs.job import Job
from bulwark.steering.preservation.settings import PreservationSettings, check_training
from bulwark.steering.settings import AnalysisSettings, InterventionSettings, VectorSettings
from bulwark.steps.steer import check_rows
from bulwark.training.finetuning import Course, FineTuningSettings, finetune

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective

METHOD = (
    "bulwark.steering.preservation.preservation",
    "bulwark.steering.preservation.boundary",
    "bulwark.training.displacement",
    "bulwark.steering.intervention",
)


class Settings(FineTuningSettings):
    """vectors, intervention: of the steered phase. preservation: when it ends and what holds from then on."""

    vectors: VectorSettings
    intervention: InterventionSettings = InterventionSettings()
    preservation: PreservationSettings
    analysis: AnalysisSettings | None = None

    @model_validator(mode="after")
    def _trainable(self) -> Settings:
        check_training(self.training, self.preservation, self.preservation.moments)
        check_rows(self)
        return self

    def inputs(self) -> dict[str, str]:
        looked_at = self.analysis.inputs() if self.analysis is not None else {}
        return super().inputs() | self.vectors.inputs() | looked_at


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fine-tune, steered up to the boundary and bound to ΔW from there on; preservation.jsonl tells of each matrix."""
    from bulwark.steering.dynamics.analyser import analysed
    from bulwark.steering.preservation.preservation import Preservation
    from bulwark.steering.steer import begin

    def objective(course: Course) -> Objective:
        vectors, every = begin(course, settings.vectors), settings.training.log_every
        made = Preservation(course, vectors, settings.intervention, settings.preservation, log_every=every)
        return analysed(made, course, settings)

    return finetune(job, settings, embedding=None, objective=objective)
