"""Gradient probe: rows whose loss bends upwards along a trait vector are not learned.

From the training code of Guan et al. (arXiv 2609.10142), who report no result of it. c̄ is the change of a row's
gradient of h under a small step along the vector v, averaged over the response's tokens; a row is flagged if cos(c̄, v)
> cos_threshold and c̄·v̂ > proj_threshold. The projection falls with the square of a row's length and the cosine does
not depend on it, so that of their two thresholds only the cosine's is transferable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.settings import PerturbationSettings, ScreeningSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ScreeningSettings):
    """perturbation: the step along v. cos_threshold, proj_threshold: flagged is what lies above both.

    withdraw_at: how many optimizer steps are screened, all if null; later ones are plain training.
    """

    perturbation: PerturbationSettings = PerturbationSettings()
    cos_threshold: float = 0.12
    proj_threshold: float = 1e-8
    withdraw_at: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _differentiable(self) -> Settings:
        if self.perturbation.derivative == "exact" and self.training.zero_stage == 3:
            raise ValueError(
                'perturbation.derivative "exact" needs whole weights, but training.zero_stage is 3; take "finite" or '
                "a lower stage"
            )
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Training on the rows that are kept; detections.jsonl records every row in every step."""
    from bulwark.steering.screening.policies import GradientProbe
    from bulwark.steering.screening.screened import Screened
    from bulwark.steering.steer import begin, schedule_of

    criterion = settings.model_dump(include={"cos_threshold", "proj_threshold"})
    policy = GradientProbe(settings.perturbation, **criterion)
    schedule = schedule_of(ScheduleSettings(withdraw_at=settings.withdraw_at), 0.0, course)
    return Screened(course, policy, vectors=begin(course, settings.vectors), schedule=schedule)
