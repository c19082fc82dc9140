"""Trainings with intervention delta preservation and continuation, for the tests with one and with two processes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from stopped_samples import stopping
from tiny_causal_models import CONFIGS, HIDDEN, V
from torch import Tensor, nn
from training_samples import PAD, examples, settings
from transformers import AutoModelForCausalLM

from bulwark.models.embeddings import install
from bulwark.steering.preservation.continuation import Continuation
from bulwark.steering.preservation.preservation import Preservation
from bulwark.steering.preservation.settings import ContinuationSettings, PreservationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training.finetuning import Course
from bulwark.training.loop import Trained, train

EXAMPLES = 24
BOUNDARY = 3


def model_of(precision: str = "float32", family: str = "llama") -> nn.Module:
    """Three blocks, so that layer 2 can be steered and still has one after it."""
    torch.manual_seed(0)
    config = CONFIGS[family](
        vocab_size=V, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
    install(model, {"method": "vanilla"})
    return model


def vector() -> Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))


def objective_of(
    model: nn.Module,
    folder: Path,
    training: Any,
    preservation: dict | None = None,
    continuation: dict | None = None,
    intervention: dict | None = None,
) -> Preservation | Continuation:
    course = Course(
        job=SimpleNamespace(folder=folder, seed=0),
        model=model,
        records=[],
        examples=examples(EXAMPLES),
        steps_per_epoch=training.steps_per_epoch(EXAMPLES),
        total_steps=training.total_steps(EXAMPLES),
        pad_id=PAD,
        training=training,
        builder=None,
        method="vanilla",
    )
    fused = FusedVectors({2: vector()}, {"traits": ["rude"]})
    steering = InterventionSettings(**({"alpha": 0.5} | (intervention or {})))
    if continuation is not None:
        chosen = ContinuationSettings(**({"boundary": BOUNDARY, "calibration_tokens": 20} | continuation))
        return Continuation(course, fused, steering, chosen, training)
    chosen = PreservationSettings(**({"boundary": BOUNDARY, "rank": 2} | (preservation or {})))
    return Preservation(course, fused, steering, chosen, log_every=1)


def trained(
    folder: Path,
    *,
    preservation: dict | None = None,
    continuation: dict | None = None,
    intervention: dict | None = None,
    interrupt: int | None = None,
    plain: bool = False,
    **changes: Any,
) -> tuple[Trained, Any]:
    """Train seven steps; interrupt: stop before that step, with the state after the one before it.

    Returns the training and its objective."""
    # With AdamW's usual 1e-8, a gradient of nearly 0, as projections leave them, becomes a whole step in whichever
    # direction rounding gives it, and what should agree to 1e-5 agrees on one processor and not on another.
    training = settings(**({"max_steps": 7, "evaluate_every": None, "eps": 1e-4} | changes))
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(training.precision)
    objective = None
    if not plain:
        objective = objective_of(model, folder, training, preservation, continuation, intervention)
        if interrupt is not None:
            stopping(objective, interrupt, "before_step")
    result = train(
        model,
        examples(EXAMPLES),
        [],
        training,
        seed=0,
        state=folder / "training",
        fingerprint={},
        pad_id=PAD,
        objective=objective,
    )
    return result, objective


def energy_inside(movement: Tensor, basis: Tensor) -> float:
    """The share of ‖movement‖² that lies in the column space of `basis`."""
    return float((basis.T @ movement).square().sum() / movement.square().sum())


def spectrum(name: str, count: int = 64) -> Tensor:
    i = torch.arange(1, count + 1, dtype=torch.float32)
    return {"1/i": 1 / i, "1/sqrt(i)": i**-0.5, "exp": torch.exp(-i / 8)}[name]


def matrix_with(values: Tensor, rows: int, columns: int) -> Tensor:
    """A random matrix with these singular values."""
    draw = torch.Generator().manual_seed(math.prod((rows, columns)) % 1000)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=draw)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=draw)).Q
    return left * values @ right.T
