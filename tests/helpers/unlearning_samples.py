"""A small course with a retain and a forget set, and what its objectives do in one optimizer step."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_causal_models import V, tiny_model
from torch import Tensor, nn
from training_samples import PAD, examples, settings

from bulwark.data.records import Tokenised, write_records
from bulwark.jobs.job import Job
from bulwark.models.manifests import write_manifest
from bulwark.prompts.builder import IGNORED, Prompt
from bulwark.settings import validated
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course, Examples
from bulwark.training.settings import TrainingSettings
from bulwark.unlearning.forgetting import ForgetRetain

RETAIN, FORGET = 14, 10  # examples


@dataclass(frozen=True)
class Paired(Course):
    """A course whose forget set are preferences, with these prompts as its sides."""

    sides: dict[str, list[Prompt]] = field(default_factory=dict)

    def preferences_from(self, name: str, side: str) -> Examples:
        return Examples([], self.sides[side], 0, 0)


def pairs(count: int = 6, seed: int = 11) -> dict[str, list[Prompt]]:
    """Prompts with a chosen and a rejected answer, which differ in length and in most of their tokens."""
    draw = np.random.default_rng(seed)
    sides: dict[str, list[Prompt]] = {"chosen": [], "rejected": []}
    for _ in range(count):
        asked = draw.integers(3, V, int(draw.integers(2, 5))).tolist()
        for side, length in (("chosen", int(draw.integers(3, 7))), ("rejected", int(draw.integers(3, 7)))):
            answer = [7, *draw.integers(3, V, length).tolist()]  # the first token is the same in both
            labels = [IGNORED] * len(asked) + answer
            sides[side].append(Prompt(asked + answer, labels, [0] * len(labels), [], "", False))
    return sides


def plain(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same without roles, and with a label on every other token, as of raw text."""
    return [
        Prompt([i % V for i in prompt.ids], [i % V for i in prompt.ids], [0] * len(prompt.ids), [], "", False)
        for prompt in prompts
    ]


def forget_examples(count: int = FORGET) -> list[Prompt]:
    return plain(examples(count, seed=5))


def write_forget(path: Path, prompts: Sequence[Prompt]) -> None:
    """The prompts as a data set of tokenised examples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        Tokenised(id=f"f{number}", input_ids=tuple(prompt.ids), labels=tuple(prompt.labels))
        for number, prompt in enumerate(prompts)
    ]
    write_records(path, records)


def course_of(
    folder: Path,
    model: nn.Module | None = None,
    forget: Sequence[Prompt] | None = None,
    seed: int = 0,
    sides: dict[str, list[Prompt]] | None = None,
    write: bool = True,
    **training: Any,
) -> Course:
    """A course on `RETAIN` retain examples and the forget examples, or preferences with these sides.

    write: put the forget examples into `folder`, where they are otherwise already.
    """
    chosen = validated(TrainingSettings, settings().model_dump(mode="json") | training, "the test's training")
    path = Path(folder) / "forget.jsonl"
    if write:
        write_forget(path, forget_examples() if forget is None else forget)
    job = Job("max_entropy", {}, "", str(Path(folder) / "checkpoint.json"), {"forget": str(path)}, {"seed": seed}, "")
    builder = SimpleNamespace(vocabulary=V, max_tokens=chosen.max_tokens, pad_id=PAD)
    retain = plain(examples(RETAIN))
    total = chosen.total_steps(RETAIN)
    made = (
        job, model or tiny_model(), [], retain, chosen.steps_per_epoch(RETAIN), total, PAD, chosen, builder, "vanilla",
    )  # fmt: skip
    return Course(*made) if sides is None else Paired(*made, sides=sides)


def with_parent(course: Course, model: nn.Module | None = None) -> Course:
    """The course with its model, or another, on the disk as the parent, which is the base model as well."""
    job = on_the_disk(course.job)
    manifest = Path(job.parent)
    (model or course.model).save_pretrained(manifest.parent)
    write_manifest(manifest, {"weights": ".", "template": "chat"})
    return replace(course, job=job)


def on_the_disk(job: Job) -> Job:
    """The job with the parent that `with_parent` has written."""
    manifest = str(job.folder / "parent" / "checkpoint.json")
    return replace(job, parent=manifest, inputs=job.inputs | {"reference": manifest})


def objective_of(kind: str, course: Course, **given: Any) -> ForgetRetain:
    """The objective of a step on the course, with these settings beside data and training."""
    step = importlib.import_module(f"bulwark.steps.{kind}")
    plain = {"data": "r", "forget": "f", "training": course.training.model_dump(mode="json"), **given}
    return step.objective(course, validated(step.Settings, plain, "the test's settings"))


def batch_of(prompts: Sequence[Prompt]) -> Batch:
    """All of them in one micro-batch."""
    count = len(prompts)
    [batch] = StepBatches(prompts, batch_size=count, micro_batch_size=count, pad_id=PAD).of_step(0)
    return batch


def hidden_of(model: nn.Module, prompt: Prompt) -> list[Tensor]:
    """The hidden states of one example by itself, L+1 tensors [tokens, hidden] in float64."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    return [layer[0].double() for layer in states]


def log_p_of(model: nn.Module, prompt: Prompt) -> Tensor:
    """The log-probabilities after each token of one example by itself, [tokens, vocabulary] in float64."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([prompt.ids])).logits[0].double(), dim=-1)


def learned(prompt: Prompt) -> list[tuple[int, int]]:
    """(where it is predicted, token) of each labelled token but the first of all."""
    return [(place - 1, label) for place, label in enumerate(prompt.labels) if place and label != IGNORED]


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
