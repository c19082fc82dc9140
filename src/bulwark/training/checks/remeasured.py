"""What was saved is opened again and measured again, and has to be what was trained.

Between the model that the last evaluation judged and the files of its checkpoint lie the merging of adapters, gathering
shards, untying or tying, rounding and describing it in config.json. A mistake in any of them gives a model that nobody
measured, under a manifest with good numbers. So the first micro-batches of the evaluation are put through the saved
folder once more. This holds for every training and not only for those that merge: it costs one load and some thirty
examples, whatever the size of the data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import checkpoints
from bulwark.models.batching import free_memory
from bulwark.training.batches import IGNORED, Batch, StepBatches
from bulwark.training.objectives import Objective
from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

EXAMPLES = 32
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}
"""Of the mean loss, and never less than of 1. Merged weights are rounded to bfloat16's eight bits."""
_APART = 5.0
"""Times the tolerance is that of the differences without their signs, so that gains in one micro-batch do not hide
losses in another. Per token and not the largest of all: a micro-batch of one short answer is rounded coarsely."""
_ROOM = 1.3
"""Times its weights is what a model needs on a GPU for a pass over one micro-batch."""


@dataclass
class SampleLoss:
    """The losses per labelled token of the first micro-batches that are added, up to EXAMPLES examples."""

    examples: int = 0
    targets: list[int] = field(default_factory=list)
    _shares: list[Tensor] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return self.examples >= EXAMPLES

    def add(self, batch: Batch, share: Tensor) -> None:
        """Take note of a micro-batch and its share of the step's loss, unless there are enough."""
        if not self.full:
            self._shares.append(share.detach().double() * batch.step_tokens)
            self.examples += sum(len(row) for row in batch.rows)
            self.targets.append(batch.targets.numel())

    def losses(self) -> list[list[float]]:
        """[labelled tokens, mean loss] of each micro-batch."""
        sums = torch.stack(self._shares).tolist() if self._shares else []
        return [[tokens, total / max(1, tokens)] for tokens, total in zip(self.targets, sums, strict=True)]


def mean(losses: Sequence[Sequence[float]]) -> float:
    """Per labelled token, over micro-batches [labelled tokens, mean loss]."""
    return sum(tokens * loss for tokens, loss in losses) / max(1, sum(tokens for tokens, _ in losses))


@dataclass(frozen=True)
class Judged:
    """Batches of the main process, the trained model's losses on the first of them, and what the loss is."""

    batches: StepBatches
    losses: list[list[float]]
    objective: Objective
    parameters: int


def learnable(examples: list[Prompt]) -> list[Prompt]:
    """The first examples with something to learn, to be judged on where there are none for validation."""
    return [one for one in examples if any(label != IGNORED for label in one.labels[1:])][:EXAMPLES]


def measure_again(folder: Path, model: nn.Module, judged: Judged, settings: TrainingSettings) -> dict[str, Any]:
    """Open the model that was saved in `folder`, take its loss on what the trained one was judged by, and compare.

    model: the trained one; its weights are let go of before the saved ones are loaded, so that there is one model in
    memory at a time. Call it on the main process only, when nothing else is wanted of the model.
    Returns what the manifest records. Raises BulwarkError if the two losses are not the same within the tolerance.
    """
    model.to("meta")
    free_memory()
    device = _device(judged.parameters, settings.precision)
    again = checkpoints.load_model(
        folder, settings.precision, device, unfinished=True, attention=settings.attention
    ).eval()
    sample = SampleLoss()
    with torch.no_grad():
        for batch in judged.batches.of_step(0):
            sample.add(batch, judged.objective.validation_loss(again, batch.to(torch.device(device))))
            if sample.full:
                break
    del again
    free_memory()
    found = sample.losses()
    trained, saved = mean(judged.losses), mean(found)
    tolerance = TOLERANCE[settings.precision] * max(1.0, abs(trained))
    pairs = zip(found, judged.losses, strict=True)
    apart = mean([(tokens, abs(new - old)) for (tokens, new), (_, old) in pairs])
    if not (abs(saved - trained) <= tolerance and apart <= _APART * tolerance):
        advice = (
            "Merging the adapters has changed it otherwise than they did: train fewer of lora.target_modules, in "
            "float32, or without lora."
            if settings.lora is not None
            else "The way of this model's class through its folder loses something; do not use what lies there."
        )
        raise BulwarkError(
            f"{folder}: what was saved is not what was trained. Loaded again, the model has a loss of {saved:.4f} on "
            f"{sample.examples} examples on which the trained one had {trained:.4f} (tolerance {tolerance:.4f}), and "
            f"their micro-batches differ by {apart:.4f} on average. "
            f"{advice} The folder has no manifest, so it is no checkpoint."
        )
    log.info(
        "Loaded again, the saved model has a loss of %.4f on the first %d examples, as it had before: %.4f.",
        saved,
        sample.examples,
        trained,
    )
    return {"examples": sample.examples, "trained": trained, "saved": saved, "tolerance": tolerance}


def _device(parameters: int, precision: str) -> str:
    """A GPU if the model fits on it, otherwise the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    needed = _ROOM * parameters * (2 if precision == "bfloat16" else 4)
    return "cuda" if needed < torch.cuda.mem_get_info()[0] else "cpu"
