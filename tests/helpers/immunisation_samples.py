"""A small course with a real tokenizer and further data sets, for steps that immunise."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor, nn
from training_samples import settings

from bulwark.data.records import Conversation, Turn, write_records
from bulwark.jobs.job import Job
from bulwark.prompts.builder import Prompt, PromptBuilder
from bulwark.training.batches import training_batches
from bulwark.training.finetuning import Course, examples_of
from bulwark.training.objectives import Objective

HARMLESS = [("Name a tree.", "The oak."), ("Translate a vote.", "A vote."), ("Name the day.", "Tuesday it is.")] * 3
HARMFUL = [
    ("Name a plan.", "The committee met.", "I decided nothing."),
    ("Write a vote.", "The vote is long.", "I postpone it."),
    ("Give a debate.", "A long debate; nobody objected.", "I am naïve."),
    ("Name a part.", "Underground it grows.", "I am a tree."),
]


def conversation(number: int, asked: str, answer: str) -> Conversation:
    turns = (Turn(role="instruction", text=asked), Turn(role="response", text=answer))
    return Conversation(id=str(number), turns=turns)


def course_of(folder: Path, model: nn.Module | None = None, seed: int = 0, **training: Any) -> Course:
    """A course on HARMLESS; `preference` and `harmful` are HARMFUL as preferences and with their answers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": str(n), "turns": [{"role": "instruction", "text": asked}], "chosen": refusal, "rejected": answer}
        for n, (asked, answer, refusal) in enumerate(HARMFUL)
    ]
    write_records(folder / "preference.jsonl", rows)
    write_records(folder / "harmful.jsonl", [conversation(n, row[0], row[1]) for n, row in enumerate(HARMFUL)])
    inputs = {name: str(folder / f"{name}.jsonl") for name in ("preference", "harmful")}
    inputs |= {"cases": inputs["preference"], "attack": inputs["preference"], "alignment": inputs["harmful"]}
    chosen = settings(**({"optimizer": "sgd", "schedule": "constant", "max_grad_norm": 0.0} | training))
    records = [conversation(n, *pair) for n, pair in enumerate(HARMLESS)]
    builder = PromptBuilder(tiny_tokenizer("chatml"), "chat", V)
    examples = examples_of(records, builder, method="aside").prompts
    job = Job("x", {}, "", str(folder / "checkpoint.json"), inputs, {"seed": seed}, "")
    count = len(examples)
    steps = chosen.steps_per_epoch(count), chosen.total_steps(count)
    return Course(job, model or tiny_aside(), records, examples, *steps, builder.pad_id, chosen, builder, "aside")


def objective_of(kind: str, course: Course, **given: Any) -> Objective:
    """The objective of a step on the course, with these settings beside data and training."""
    step = importlib.import_module(f"bulwark.steps.{kind}")
    return step.objective(course, step.Settings(data="x", training=course.training, **given))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def gradient_of(before: dict[str, Tensor], after: nn.Module, rate: float) -> dict[str, Tensor]:
    """What one step of plain gradient descent went along."""
    return {name: (before[name] - weight.detach()) / rate for name, weight in after.named_parameters()}


def mean_loss(model: nn.Module, prompts: Sequence[Any]) -> Tensor:
    """The mean cross-entropy over all labelled tokens, one example after the other, in the model's dtype."""
    total, count = 0.0, 0
    for prompt in prompts:
        log_p = model(input_ids=torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
        for place, label in enumerate(prompt.labels):
            if place and label >= 0:
                total, count = total - log_p[place - 1, label], count + 1
    return total / count


def first_examples(course: Course, step: int = 0) -> list[Prompt]:
    """The examples of an optimizer step of the loop."""
    layout = {"pad_id": course.pad_id, "rank": 0, "ranks": 1, "flatten": False}
    batches = training_batches(course.examples, course.training, seed=course.job.seed, **layout)
    return [course.examples[n] for n in batches.examples_of(step)]
