"""What each steering step costs over plain fine-tuning: the same batches, gradient checkpointing on.

Eight blocks, steered at layer 6, 75 % of the depth; no row is flagged, so that nothing is saved. Only the training
itself is timed, as the loop reports it. The rise and the embedded variant do what unconditional steering does.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing import Ratio, ratio
from bulwark.data.records import Conversation, Turn
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.steering.preservation.preservation import Preservation
from bulwark.steering.preservation.settings import PreservationSettings
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.policies import DeltaLoss, GradientProbe, StateAware
from bulwark.steering.screening.screened import Screened
from bulwark.steering.screening.settings import PerturbationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.steer import Steering
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training import loop
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective
from bulwark.training.settings import TrainingSettings

BLOCKS, LAYER, HIDDEN, VOCABULARY = 8, 6, 256, 1000
BATCH, STEPS, LENGTH = 8, 8, 128
FIXED = InterventionSettings(alpha=1.0)
NEVER = 1e9


def run() -> Iterator[Ratio]:
    """Seconds of each step's training over seconds of plain training; for IDP also the host memory it holds."""
    logging.disable(logging.INFO)
    examples = _examples()
    schedule = ScheduleSettings().over(STEPS, FIXED.alpha)

    def screened(policy: Callable[[Course], Any]) -> Callable[[Course], Objective]:
        return lambda course: Screened(course, policy(course), vectors=_vectors(), schedule=schedule)

    def delta_loss(mode: str) -> Callable[[Course], Objective]:
        options = {"mode": mode, "granularity": "sample", "strategy": "mean", "threshold": -NEVER}
        return screened(lambda _: DeltaLoss(FIXED, **options))

    def state_aware(course: Course) -> StateAware:
        references = {
            record.id: {"ref_projection": 0.0, "current_projection": 0.0, "excluded": None} for record in course.records
        }
        return StateAware(course.records, references, margin=NEVER)

    def preservation(course: Course) -> Preservation:
        return Preservation(course, _vectors(), FIXED, PreservationSettings(boundary=1))

    steps: dict[str, tuple[Callable[[Course], Objective], str]] = {
        "steer (unconditional steering)": (lambda _: Steering(_vectors(), FIXED, schedule), "≤ 1.03"),
        "state_aware": (screened(state_aware), "≤ 1.05"),
        "delta_loss, mask": (delta_loss("mask"), "≤ 1.15"),
        "delta_loss, inject": (delta_loss("inject"), "≤ 1.15"),
        "gradient_probe": (
            screened(lambda _: GradientProbe(PerturbationSettings(), cos_threshold=1.0, proj_threshold=NEVER)),
            "≤ 1.45",
        ),
        "idp (update projected from step 1 on)": (preservation, "≤ 1.15"),
    }
    for name, (objective, wanted) in steps.items():
        yield ratio(
            f"{name} / sft: seconds of the same training",
            lambda objective=objective: _trained(examples, objective),
            lambda: _trained(examples, None),
            wanted,
            rounds=7,
            clock=lambda work: work(),
        )
    yield _memory(examples, preservation)


def _trained(examples: list[Prompt], objective: Callable[[Course], Objective] | None, **changes: Any) -> float:
    """Train a new model; the seconds that the training took, without setting up. changes: of the training settings."""
    with tempfile.TemporaryDirectory() as folder:
        model, course = _course(examples, Path(folder))
        trained = loop.train(
            model,
            examples,
            [],
            TrainingSettings(
                **{
                    "epochs": 1, "batch_size": BATCH, "micro_batch_size": BATCH, "learning_rate": 1e-4,
                    "gradient_checkpointing": True, "evaluate_every": None, "save_minutes": None,
                } | changes
            ),
            seed=0,
            state=Path(folder) / "training",
            fingerprint={},
            pad_id=0,
            objective=objective(course) if objective is not None else None,
        )  # fmt: skip
        return trained.report.seconds


def _course(examples: list[Prompt], folder: Path) -> tuple[nn.Module, Course]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=704, num_hidden_layers=BLOCKS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        )
    )  # fmt: skip
    install(model)
    turns = (Turn(role="instruction", text="?"), Turn(role="response", text="!"))
    records = [Conversation(id=str(number), turns=turns) for number in range(len(examples))]
    return model, Course(
        job=SimpleNamespace(folder=folder),
        model=model,
        records=records,
        examples=examples,
        steps_per_epoch=STEPS,
        total_steps=STEPS,
        pad_id=0,
        training=None,
        builder=None,
        method="vanilla",
    )


def _vectors() -> FusedVectors:
    return FusedVectors({LAYER: torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))}, {})


def _examples() -> list[Prompt]:
    """Conversations of one length, half of them response."""
    rng = random.Random(0)
    made = []
    for _ in range(BATCH * STEPS):
        ids = [rng.randrange(3, VOCABULARY) for _ in range(LENGTH)]
        labels = [-100] * (LENGTH // 2) + ids[LENGTH // 2 :]
        made.append(Prompt(ids=ids, labels=labels, roles=[0] * LENGTH, spans=[], text="", truncated=False))
    return made


def _memory(examples: list[Prompt], preservation: Callable[[Course], Preservation]) -> Ratio:
    """Bytes that IDP holds at most over those of one fp32 copy of the matrices that it protects, on one rank."""
    held: list[int] = []
    whole: list[int] = []

    def watched(course: Course) -> Preservation:
        objective = preservation(course)
        start, cross = objective.start, objective.cross

        def measured_start(engine, total):
            start(engine, total)
            whole.append(sum(4 * parameter.numel() for parameter, _ in objective.watched(engine.module)))
            held.append(_bytes(vars(objective)))

        def measured_cross(engine, snapshots):
            cross(engine, snapshots)
            held.append(_bytes(vars(objective)))

        objective.start, objective.cross = measured_start, measured_cross
        return objective

    _trained(examples, watched)
    share = max(held) / whole[0]
    return Ratio("idp: bytes held / one fp32 copy of the protected weights", share, share, share, "≤ 1")


def _bytes(thing: Any, seen: set[int] | None = None) -> int:
    """Bytes of all float tensors that are not parameters, in nested containers and plain objects, each storage once."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, nn.Module | nn.Parameter | Course | FusedVectors):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(thing, dict):
        return sum(_bytes(part, seen) for part in thing.values())
    if isinstance(thing, list | tuple):
        return sum(_bytes(part, seen) for part in thing)
    return sum(_bytes(part, seen) for part in vars(thing).values()) if hasattr(thing, "__dict__") else 0
