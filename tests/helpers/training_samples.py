"""Small examples, settings and objectives for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_causal_models import V
from torch import nn

from bulwark.prompts.builder import IGNORED, Prompt
from bulwark.training import engine as engines
from bulwark.training.finetuning import Course
from bulwark.training.loop import Trained, train
from bulwark.training.objectives import Objective
from bulwark.training.observers import Observer
from bulwark.training.settings import TrainingSettings

PAD = 0


def example(ids: list[int], learned: int) -> Prompt:
    """A prompt whose last `learned` tokens are labelled; the first half of the others is instruction, the rest data."""
    before = len(ids) - learned
    roles = [1] * (before // 2) + [2] * (before - before // 2) + [0] * learned
    encoded = [token + V * role for token, role in zip(ids, roles, strict=True)]
    return Prompt(encoded, [IGNORED] * before + ids[before:], roles, [], "", False)


def examples(count: int, seed: int = 0, shortest: int = 4, longest: int = 12) -> list[Prompt]:
    """Random examples of different lengths, about half of whose tokens are learned."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, longest + 1, count)
    return [example(draw.integers(3, V, n).tolist(), int(draw.integers(1, n))) for n in lengths]


def settings(**changes: Any) -> TrainingSettings:
    defaults = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "save_minutes": None}
    return TrainingSettings(**(defaults | changes))


def trained(
    model: nn.Module,
    folder: Path,
    count: int = 14,
    objective: Objective | None = None,
    observers: Sequence[Observer] = (),
    **changes: Any,
) -> Trained:
    """Train on `count` examples, validating on six others."""
    return train(
        model,
        examples(count),
        examples(6, seed=1),
        settings(**changes),
        seed=0,
        state=folder / "training",
        fingerprint={"test": True},
        pad_id=PAD,
        objective=objective,
        observers=observers,
    )


def run(course: Course, objective: Objective, folder: Path) -> Trained:
    """Train a course's model on its examples with the objective."""
    return train(
        course.model,
        course.examples,
        [],
        course.training,
        seed=course.job.seed,
        state=Path(folder) / "training",
        fingerprint={},
        pad_id=course.pad_id,
        objective=objective,
    )


class Edited(Objective):
    """Removes the gradients of the query projections, in the way in which gradients are projected."""

    def after_backward(self, engine, step, total):
        for name, parameter in engine.module.named_parameters():
            factor = 0.0 if name.endswith("q_proj.weight") else 1.0
            gradient = engines.gradient_of(parameter)
            assert gradient.shape == getattr(parameter, "ds_shape", parameter.shape)
            engines.set_gradient(parameter, gradient * factor)


class Trajectory(Objective):
    """In each step: attack by gradient descent, take the gradient there, put the weights back (as TAR does, Alg. 1)."""

    def backward(self, engine, batch):
        parameters = list(engine.module.parameters())
        start = [engines.master_of(parameter) for parameter in parameters]
        engine.set_gradient_accumulation_boundary(True)
        for _ in range(2):
            engines.backward(engine, self.loss(engine, batch))
            for parameter in parameters:
                engines.set_master(parameter, engines.master_of(parameter) - 0.1 * engines.gradient_of(parameter))
            engines.publish(engine)
            engines.clear_gradients(engine)
        attacked = self.loss(engine, batch)
        engines.backward(engine, attacked)
        for parameter, weight in zip(parameters, start, strict=True):
            engines.set_master(parameter, weight)
        engines.publish(engine)
        return attacked.detach()
