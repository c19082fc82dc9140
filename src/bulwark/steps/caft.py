"""CAFT, concept ablation fine-tuning: the component along the trait vector is taken out of the residual stream.

h' = h - (h·v̂)v̂ while fine-tuning, at every token, so that the training cannot use the direction; a comparison in
persona vectors (Chen et al., arXiv 2507.21509, and the "ablate" of their code), after Casademunt et al. (arXiv
2507.16795). There is no strength.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.settings import InterventionSettings, Site, Tokens, VectorTraining, check_last_weights

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(VectorTraining):
    """tokens, site: as in `InterventionSettings`. withdraw_at: the number of steps with ablation; None for all."""

    tokens: Tokens = "all"
    site: Site = "block"
    withdraw_at: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ends_as_it_should(self) -> Settings:
        if self.withdraw_at is not None:
            check_last_weights(self.training, "the ablation is withdrawn on the way")
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training with the direction ablated."""
    from bulwark.steering.steer import Steering, begin, schedule_of

    schedule = schedule_of(ScheduleSettings(withdraw_at=settings.withdraw_at), 1.0, course)
    where = InterventionSettings(tokens=settings.tokens, site=settings.site)
    return Steering(begin(course, settings.vectors), where, schedule, ablate=True)
