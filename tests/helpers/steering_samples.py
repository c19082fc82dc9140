"""A tiny model, vectors for it, and courses, for the tests of steered training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_causal_models import HIDDEN, tiny_model
from torch import Tensor, nn
from training_samples import PAD, examples, settings

from bulwark.jobs.job import Job
from bulwark.models.embeddings import install
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training.finetuning import Course

LAYERS = 4


def steered_model(family: str = "llama") -> nn.Module:
    """The same model of four blocks at every call."""
    model = tiny_model(family, layers=LAYERS)
    install(model, {"method": "vanilla"})
    return model


def vector(seed: int = 5, size: float = 2.0) -> Tensor:
    drawn = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))
    return size * drawn / drawn.norm()


def fused(*layers: int) -> FusedVectors:
    return FusedVectors({layer: vector(layer) for layer in layers or (2,)}, {"traits": ["x"]})


def course_of(
    model: nn.Module, folder: Path, count: int = 14, inputs: dict[str, str] | None = None, **changes: Any
) -> Course:
    """The course of `training_samples.trained` with the same count and changes."""
    training = settings(**changes)
    job = Job("steer", {}, str(folder / "model.json"), str(folder / "checkpoint.json"), inputs or {}, {"seed": 0}, "")
    return Course(
        job=job,
        model=model,
        records=[],
        examples=examples(count),
        steps_per_epoch=training.steps_per_epoch(count),
        total_steps=training.total_steps(count),
        pad_id=PAD,
        training=training,
        builder=None,
        method="vanilla",
    )


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)
