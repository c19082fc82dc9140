"""A small course, a vector and policies for the tests of detection."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import torch
from tiny_causal_models import HIDDEN, tiny_model
from torch import nn
from training_samples import PAD, examples, settings

from bulwark.data.records import Conversation, Turn
from bulwark.jobs.job import Job
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.policies import DeltaLoss, GradientProbe, Policy, StateAware
from bulwark.steering.screening.screened import FILE, Screened
from bulwark.steering.screening.settings import PerturbationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.loop import Trained, train
from bulwark.training.objectives import Objective
from bulwark.training.observers import Observer

LAYER = 1  # of the tiny model's two
COUNT = 13  # with steps of four, one is left over


def model_of(family: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = tiny_model(family, dtype=dtype)
    install(model, {"method": "aside", "alpha": 1.5, "direction": "right"})
    return model


def vector_of(seed: int = 3) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))


def batch_of(count: int = 5, data: list[Prompt] | None = None) -> Batch:
    data = data or examples(count)
    [batch] = StepBatches(data, batch_size=len(data), micro_batch_size=len(data), pad_id=PAD).of_step(0)
    return batch


def records_of(count: int = COUNT) -> list[Conversation]:
    turns = (Turn(role="instruction", text="x"), Turn(role="response", text="y"))
    return [
        Conversation(id=f"r{number}", turns=turns, meta={"level": number % 3, "source_file": "some.jsonl"})
        for number in range(count)
    ]


def references_of(count: int = COUNT, value: float | None = 0.0) -> dict[str, dict[str, Any]]:
    return {
        f"r{number}": {"ref_projection": value, "current_projection": 1.0, "excluded": None} for number in range(count)
    }


def delta_loss(**changes: Any) -> DeltaLoss:
    chosen = {"mode": "mask", "granularity": "sample", "strategy": "mean", "threshold": 0.0}
    return DeltaLoss(InterventionSettings(alpha=0.5), **(chosen | changes))


def probe(cos: float = 0.0, proj: float = 0.0, **perturbation: Any) -> GradientProbe:
    return GradientProbe(PerturbationSettings(**perturbation), cos_threshold=cos, proj_threshold=proj)


def state_aware(margin: float = 0.0, references: dict[str, Any] | None = None) -> StateAware:
    return StateAware(records_of(), references or references_of(), margin=margin)


def policies(always: bool = False) -> dict[str, Policy]:
    """Every kind of policy: flagging some rows, or with `always` none."""
    low, high = (-torch.inf, torch.inf) if always else (0.0, 0.0)
    return {
        "mask": delta_loss(threshold=low),
        "mask_min": delta_loss(strategy="min", threshold=-torch.inf if always else -0.5),
        "mask_token": delta_loss(granularity="token", threshold=low),
        "inject": delta_loss(mode="inject", threshold=low),
        "probe": probe(cos=high),
        "probe_exact": probe(cos=high, derivative="exact"),
        "state": state_aware(margin=high),
    }


def objective_of(policy: Policy, folder: Path, schedule: ScheduleSettings | None = None, total: int = 4) -> Screened:
    job = Job("delta_loss", {}, "", str(folder / "checkpoint.json"), {}, {"seed": 0}, "")
    course = Course(job, model_of(), records_of(), examples(COUNT), 4, total, PAD, None, None, "vanilla")
    over = (schedule or ScheduleSettings()).over(total, 0.5)
    return Screened(course, policy, vectors=FusedVectors({LAYER: vector_of()}, {"traits": ["x"]}), schedule=over)


def screened(
    policy: Policy | None,
    folder: Path,
    *,
    model: nn.Module | None = None,
    objective: Objective | None = None,
    injection: ScheduleSettings | None = None,
    data: list[Prompt] | None = None,
    observers: Sequence[Observer] = (),
    **changes: Any,
) -> Trained:
    """Train with a policy, or plainly with None."""
    chosen = settings(**changes)
    if objective is None and policy is not None:
        objective = objective_of(policy, folder, injection, chosen.max_steps)
    return train(
        model or model_of(),
        data or examples(COUNT),
        [],
        chosen,
        seed=0,
        state=folder / "training",
        fingerprint={},
        pad_id=PAD,
        objective=objective,
        observers=observers,
    )


@contextlib.contextmanager
def forgotten_orders() -> Iterator[list[int]]:
    """Filled with the place in a pass at which ZeRO-3 has found that its order of the modules does not hold."""
    coordinator = "deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator"
    found: list[int] = []
    forget = resolve_name(coordinator)._invalidate_trace

    def noted(self: Any) -> None:
        found.append(vars(self)["_PartitionedParameterCoordinator__step_id"])
        forget(self)

    with mock.patch(f"{coordinator}._invalidate_trace", noted):
        yield found


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
