"""Small examples and settings for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_causal_models import V
from torch import nn

from bulwark.prompts import IGNORED, Prompt
from bulwark.training.loop import Trained, train
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


def trained(model: nn.Module, folder: Path, count: int = 14, objective: Any = None, **changes: Any) -> Trained:
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
    )
