"""Supervised fine-tuning of whatever checkpoint there is: the attack that steering defends against, and its controls.

Unlike `vanilla` it keeps the parent's role embedding, and so can follow any defence. With data that show a trait it is
the fine-tuning of persona vectors (Chen et al., arXiv 2507.21509, Sec. 4) and "unprotected" in Guan et al. (arXiv
2609.10142); with the same data without the rows that show it, its control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from bulwark.jobs.job import Job
from bulwark.steering.settings import AnalysisSettings, check_analysis
from bulwark.training.finetuning import Course, FineTuningSettings, finetune

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective


class Settings(FineTuningSettings):
    """Data and training; an analysis has to name its vectors."""

    analysis: AnalysisSettings | None = None

    @model_validator(mode="after")
    def _knows_its_vectors(self) -> Settings:
        if self.analysis is not None and self.analysis.vectors is None:
            raise ValueError("analysis.vectors is missing: plain fine-tuning has no trait vectors of its own")
        check_analysis(self.analysis, self.training.lora is not None)
        return self

    def inputs(self) -> dict[str, str]:
        return super().inputs() | (self.analysis.inputs() if self.analysis is not None else {})


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fine-tune without any intervention but one that the parent carries."""
    if settings.analysis is None:
        return finetune(job, settings, embedding=None)

    def objective(course: Course) -> Objective:
        from bulwark.steering.dynamics.analyser import analysed
        from bulwark.training.objectives import Objective

        return analysed(Objective(), course, settings)

    return finetune(job, settings, embedding=None, objective=objective)
