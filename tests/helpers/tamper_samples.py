"""A course whose further data sets are small random examples, and the settings of a tamper-resistant training."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from torch import nn
from training_samples import PAD, examples, settings

from bulwark.jobs.job import Job
from bulwark.training.finetuning import Course, Examples
from bulwark.unlearning.tampering.settings import TamperingSettings

COUNT = 14


class SampleCourse(Course):
    """Each name stands for ten examples of its own; the two sides of a preference begin with the same prompt."""

    def examples_from(self, name: str) -> Examples:
        return Examples([], examples(10, seed=zlib.crc32(name.encode())), 0, 0)

    def preferences_from(self, name: str, side: str) -> Examples:
        return Examples([], examples(10, seed=zlib.crc32(f"{name}/{side}".encode())), 0, 0)


def course_of(model: nn.Module, folder: Path, seed: int = 0, **changes: Any) -> SampleCourse:
    """The course of `training_samples.trained` with the same changes."""
    training = settings(**changes)
    job = Job("tar", {}, str(folder / "parent.json"), str(folder / "checkpoint.json"), {}, {"seed": seed}, "")
    return SampleCourse(
        job=job,
        model=model,
        records=[],
        examples=examples(COUNT),
        steps_per_epoch=training.steps_per_epoch(COUNT),
        total_steps=training.total_steps(COUNT),
        pad_id=PAD,
        training=training,
        builder=None,
        method="vanilla",
    )


def tampering(training: dict[str, Any] | None = None, **changes: Any) -> TamperingSettings:
    """Settings with one adversary and no representation term; `changes` replace whole keys."""
    plain: dict[str, Any] = {
        "data": "retain",
        "held_out": "facts",
        "training": settings(**(training or {})).model_dump(mode="json"),
        "adversaries": [{"name": "forget", "data": "facts"}],
        "inner": {"steps": 4, "every": 2, "learning_rates": [1e-2], "batch_size": 4, "micro_batch_size": 2},
        "retain": {"representations": False},
    }
    return TamperingSettings.model_validate_json(_json(plain | changes))


def _json(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value)
