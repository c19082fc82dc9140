"""Intervention delta continuation: steer with a trait vector, then with what the model has learned under it.

Guan et al., arXiv 2609.10142, Sec. 4.2 and Table 3: traits (of 9) 1.77 / 1.95 / 6.38 for steering to the end, 7.44 /
8.77 / 8.99 for the continuation as it is, 5.01 / 8.13 / 8.89 scaled by the ratio, 4.75 / 8.29 / 8.94 in equal shares.
There every rank injected another vector, and on attention's projection with gradients that did not fit the forward
pass; neither is repeated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from bulwark.jobs.job import Job
from bulwark.steering.preservation.settings import ContinuationSettings, check_training
from bulwark.steering.settings import AnalysisSettings, InterventionSettings, VectorSettings
from bulwark.steps.steer import check_rows
from bulwark.training.finetuning import Course, FineTuningSettings, finetune

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective

METHOD = (
    "bulwark.steering.preservation.continuation",
    "bulwark.steering.preservation.boundary",
    "bulwark.training.displacement",
    "bulwark.steering.intervention",
)


class Settings(FineTuningSettings):
    """vectors, intervention: of the steered phase; alpha, adaptive and tokens also of the second.

    continuation: when the first phase ends and what is injected from then on.
    """

    vectors: VectorSettings
    intervention: InterventionSettings = InterventionSettings()
    continuation: ContinuationSettings
    analysis: AnalysisSettings | None = None

    @model_validator(mode="after")
    def _trainable(self) -> Settings:
        check_training(self.training, self.continuation)
        check_rows(self)
        if self.intervention.adaptive and self.continuation.scale != "preserve_ratio":
            raise ValueError(
                f'intervention.adaptive divides by ‖u‖, so that continuation.scale "{self.continuation.scale}" would '
                "change nothing: leave one of them out"
            )
        return self

    def inputs(self) -> dict[str, str]:
        looked_at = self.analysis.inputs() if self.analysis is not None else {}
        return super().inputs() | self.vectors.inputs() | looked_at


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fine-tune, steered with v up to the boundary, then with a vector per output projection of the same layers."""
    from bulwark.steering.dynamics.analyser import analysed
    from bulwark.steering.preservation.continuation import Continuation
    from bulwark.steering.steer import begin

    def objective(course: Course) -> Objective:
        vectors = begin(course, settings.vectors)
        made = Continuation(course, vectors, settings.intervention, settings.continuation, settings.training)
        return analysed(made, course, settings)

    return finetune(job, settings, embedding=None, objective=objective)
