"""CAFT, concept ablation fine-tuning: the component along the trait vector is taken out of the residual stream.

h' = h - (h·v̂)v̂ while fine-tuning, at every token, so that the training cannot use the direction; a comparison in
persona vectors (Chen et al., arXiv 2507.21509, and the "ablate" of their code), after Casademunt et al. (arXiv
2507.16795). There is no strength.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from bulwark.jobs.job import Job
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.settings import (
    AnalysisSettings,
    InterventionSettings,
    Site,
    Tokens,
    VectorSettings,
    check_last_weights,
)
from bulwark.steps.steer import check_rows
from bulwark.training.finetuning import Course, FineTuningSettings, finetune

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective

METHOD = ("bulwark.steps.steer", "bulwark.steering.steer", "bulwark.steering.intervention")


class Settings(FineTuningSettings):
    """vectors: which directions, and at which layers. tokens, site: where, as in `InterventionSettings`.

    withdraw_at: after how many optimizer steps the direction is left alone; None for never.
    """

    vectors: VectorSettings
    tokens: Tokens = "all"
    site: Site = "block"
    withdraw_at: int | None = Field(None, ge=1)
    analysis: AnalysisSettings | None = None

    @model_validator(mode="after")
    def _ablatable(self) -> Settings:
        check_rows(self)
        if self.withdraw_at is not None:
            check_last_weights(self.training, "the ablation is withdrawn on the way")
        return self

    def inputs(self) -> dict[str, str]:
        looked_at = self.analysis.inputs() if self.analysis is not None else {}
        return super().inputs() | looked_at | self.vectors.inputs()


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fine-tune with the direction ablated."""

    def objective(course: Course) -> Objective:
        from bulwark.steering.dynamics.analyser import analysed
        from bulwark.steering.steer import Steering, begin, schedule_of

        schedule = schedule_of(ScheduleSettings(withdraw_at=settings.withdraw_at), 1.0, course)
        where = InterventionSettings(tokens=settings.tokens, site=settings.site)
        return analysed(Steering(begin(course, settings.vectors), where, schedule, ablate=True), course, settings)

    return finetune(job, settings, embedding=None, objective=objective)
