"""The frozen model beside the one that is trained, whose hidden states some losses hold on to or move away from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from bulwark.models import checkpoints, manifests
from bulwark.models.readout.heads import Beside, unread
from bulwark.models.readout.losses import Loss
from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import hidden_states
from bulwark.training.observers import passing
from bulwark.unlearning.settings import ReferenceSettings


class Reference:
    """The model that training starts from, or the base model, without gradients.

    To be made before the engine is built, because under ZeRO-3 weights are sharded as they are loaded. With adapters
    (LoRA) on the parent nothing is loaded: its own weights do not change, so it is the trained model without them.
    """

    def __init__(self, course: Course, settings: ReferenceSettings) -> None:
        training = course.training
        self._model: nn.Module | None = None
        if training.lora is not None and settings.of == "parent":
            return
        manifest = course.job.inputs["reference"] if settings.of == "base" else course.job.parent
        _, folder, _ = manifests.open_manifest(manifest)
        with engines.sharded_loading(training):
            model = checkpoints.load_model(folder, dtype=training.precision, attention=training.attention)
        self._model = engines.frozen(model, training)

    @torch.no_grad()
    def hidden_states(self, trained: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """L+1 tensors [batch, seq, hidden], as `training.objectives.hidden_states` gives them of the trained model.

        trained: the engine, or its model; the reference itself where it has adapters.
        """
        with self._as_it_was(trained) as model:
            return hidden_states(model, batch)

    def beside(self, of: Callable[[Tensor, Tensor], Tensor], trained: nn.Module, batch: Batch) -> Loss:
        """`of` the logits [m, vocabulary] of a pass at `batch.targets` and of this model's; trained: as above."""
        with self._as_it_was(trained) as model, passing(batch):
            other = unread(model, {**batch.inputs(), "use_cache": False}, batch.target_positions)
        return Beside(of, other)

    def _as_it_was(self, trained: nn.Module) -> AbstractContextManager[Any]:
        if self._model is not None:
            return contextlib.nullcontext(self._model)
        return _without_adapters(trained)


@contextlib.contextmanager
def _without_adapters(trained: nn.Module) -> Any:
    """The trained model with its adapters out of the way and without dropout."""
    adapted = getattr(trained, "module", trained)
    mode = trained.training
    trained.eval()
    try:
        with adapted.disable_adapter():
            yield trained
    finally:
        trained.train(mode)
