"""Intervention delta continuation: steer with a trait vector, then with what the model has learned under it.

Guan et al., arXiv 2609.10142, Sec. 4.2 and Table 3: traits (of 9) 1.77 / 1.95 / 6.38 for steering to the end, 7.44 /
8.77 / 8.99 for the continuation as it is, 5.01 / 8.13 / 8.89 scaled by the ratio, 4.75 / 8.29 / 8.94 in equal shares.
There every rank injected another vector, and attention's projection had gradients that did not fit the forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from bulwark.steering.preservation.settings import ContinuationSettings, check_training
from bulwark.steering.settings import InterventionSettings, VectorTraining

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(VectorTraining):
    """vectors, intervention: of the steered phase; alpha, adaptive and tokens also of the second.

    continuation: when the first phase ends and what is injected from then on.
    """

    intervention: InterventionSettings = InterventionSettings()
    continuation: ContinuationSettings

    @model_validator(mode="after")
    def _trainable(self) -> Settings:
        check_training(self.training, self.continuation)
        if self.intervention.adaptive and self.continuation.scale != "preserve_ratio":
            raise ValueError(
                f'intervention.adaptive divides by ‖u‖, so that continuation.scale "{self.continuation.scale}" would '
                "change nothing: leave one of them out"
            )
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Steered with v up to the boundary, then with a vector per output projection of the same layers."""
    from bulwark.steering.preservation.continuation import Continuation
    from bulwark.steering.steer import begin

    vectors = begin(course, settings.vectors)
    return Continuation(course, vectors, settings.intervention, settings.continuation, settings.training)
