"""Plain supervised fine-tuning: every token is embedded alike, whatever its role (ASIDE's "Vanilla", Sec. 4.1)."""

from __future__ import annotations

from typing import Any

from bulwark.jobs.job import Job
from bulwark.training.finetuning import FineTuningSettings, finetune


class Settings(FineTuningSettings):
    """Data and training only."""


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fine-tune with the plain embedding."""
    return finetune(job, settings, embedding={"method": "vanilla"})
