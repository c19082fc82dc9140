"""Preventative steering: fine-tune with trait vectors added to the residual stream, and without them afterwards.

Persona vectors (Chen et al., arXiv 2507.21509, Sec. 5); Guan et al. (arXiv 2609.10142): static steering (Tables 1, 3
and 4), declining strength, early withdrawal (Table 8), which tokens are steered (Table 7), fusion of traits (Table 6)
and the embedded variant (App. D). The strength that rises is the step `pis`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from bulwark.steering.schedules import ScheduleSettings, check_within
from bulwark.steering.settings import InterventionSettings, VectorTraining, check_last_weights

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class SteeredTraining(VectorTraining):
    """What `steer` and `pis` share.

    increments: with several layers, each gets what its vector has more than that of the next lower one.
    embedded: the vectors become part of the checkpoint and act in every later training of it, see
        `bulwark.steering.embedded`.
    """

    intervention: InterventionSettings = InterventionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    increments: bool = False
    embedded: bool = False

    @model_validator(mode="after")
    def _steerable(self) -> SteeredTraining:
        check_within(self.schedule, self.training)
        if self.increments and len(self.vectors.layers) < 2:
            raise ValueError("increments are between several layers, and vectors.layers names only one")
        if self.increments and self.intervention.adaptive:
            raise ValueError(
                "increments add up to the vector, which adaptive strengths would not: leave one of them out"
            )
        if self.schedule != ScheduleSettings():
            check_last_weights(self.training, "the strength changes on the way")
        if self.embedded:
            check_last_weights(self.training, "an embedded intervention has seen the tokens of all steps")
            kept = self.intervention
            if kept.adaptive or kept.tokens != "response" or kept.site != "block":
                raise ValueError(
                    "an embedded intervention adds the vector itself to whole blocks at response tokens: leave "
                    "adaptive, tokens and site of the intervention at false, response and block"
                )
            if self.schedule.withdraw_at is not None or self.schedule.shape == "decline":
                raise ValueError("an embedded intervention is there to stay: its schedule is constant or a rise")
        return self


class Settings(SteeredTraining):
    """mean_of: steer at the constant strength that this schedule has on average; the comparison that is fair to it."""

    mean_of: ScheduleSettings | None = None

    @model_validator(mode="after")
    def _not_rising(self) -> Settings:
        if self.schedule.shape == "rise":
            raise ValueError("a strength that rises is the step of kind pis")
        if self.mean_of is not None and self.schedule != ScheduleSettings():
            raise ValueError("mean_of makes the strength constant; leave out schedule")
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training under the intervention."""
    from bulwark.steering.steer import schedule_of

    intervention = settings.intervention
    if settings.mean_of is not None:
        mean = schedule_of(settings.mean_of, intervention.alpha, course).mean_alpha()
        intervention = intervention.model_copy(update={"alpha": mean})
    return steered(course, settings, intervention)


def steered(course: Course, settings: SteeredTraining, intervention: InterventionSettings) -> Objective:
    """The objective of a training under `intervention`."""
    from bulwark.steering.steer import begin, steering

    vectors = begin(course, settings.vectors, settings.increments)
    return steering(course, vectors, intervention, settings.schedule, embedded=settings.embedded)
