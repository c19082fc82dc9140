"""PIS: preventative steering whose strength rises from an onset on (Guan et al., arXiv 2609.10142, eq. 3 and 4).

alpha up to the onset, then linearly to multiplier·alpha in the last step; Table 4 (onset), Table 5 (multiplier), App. D
(embedded), App. E (the onset found in a run at constant strength).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steps.steer import SteeredTraining, steered

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(SteeredTraining):
    """schedule: a rise, with the onset given or to be detected."""

    schedule: ScheduleSettings

    @model_validator(mode="after")
    def _rising(self) -> Settings:
        if self.schedule.shape != "rise":
            raise ValueError(
                f"the strength of PIS rises, and the shape here is {self.schedule.shape}; see the step steer"
            )
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training under an intervention that grows."""
    return steered(course, settings, settings.intervention)
