"""Delta-loss: rows that a trait vector makes easier to learn are not learned, or learned with the vector added.

From the training code of Guan et al. (arXiv 2609.10142), who report no result of it. With Δ the row's loss with the
vector added minus that without, a row is flagged if Δ < threshold. Their modes "inject" and "token" stop with an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.settings import ScreeningSettings, refuse_other_sites
from bulwark.steering.settings import InterventionSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ScreeningSettings):
    """mode: "mask" leaves out what is flagged, "inject" learns it with the vector added.

    granularity: rows ("sample") or single tokens are flagged. strategy: Δ of a row is the mean over its tokens or their
    least. threshold: flagged is Δ < threshold. schedule: of the strength; once it is withdrawn, training is plain.
    """

    intervention: InterventionSettings = InterventionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    mode: Literal["mask", "inject"] = "mask"
    granularity: Literal["sample", "token"] = "sample"
    strategy: Literal["mean", "min"] = "mean"
    threshold: float = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        refuse_other_sites(self.intervention)
        if self.intervention.alpha == 0:
            raise ValueError(
                "with intervention.alpha 0, Δ is 0 for every row and nothing is ever flagged; set a strength"
            )
        if self.granularity == "token":
            if self.mode == "inject":
                raise ValueError('mode "inject" adds the vector to whole rows, so granularity must be "sample"')
            if self.strategy == "min":
                raise ValueError('strategy "min" is the least of a row\'s tokens, so granularity must be "sample"')
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Training on the rows that are kept; detections.jsonl records every row in every step."""
    from bulwark.steering.screening.policies import DeltaLoss
    from bulwark.steering.screening.screened import Screened
    from bulwark.steering.steer import begin, schedule_of

    criterion = settings.model_dump(include={"mode", "granularity", "strategy", "threshold"})
    policy = DeltaLoss(settings.intervention, **criterion)
    schedule = schedule_of(settings.schedule, settings.intervention.alpha, course)
    return Screened(course, policy, vectors=begin(course, settings.vectors), schedule=schedule)
