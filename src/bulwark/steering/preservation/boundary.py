"""A training in two phases: steered up to a boundary, and after it something that builds on what the steering did.

Steps 0 … K-1 are steered as static preventative steering is. Then, before step K, `cross` looks at the displacement of
some weights, ΔW = W_K - W_0, and prepares the second phase. (The authors' code counts micro-batches, steers K+1 of them
and may cross in the middle of an optimizer step; Guan et al., arXiv 2609.10142, Sec. 4.) W_0 is no part of the state: a
resumed training begins at the parent's weights as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import ConfigurationError
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.preservation.settings import BoundarySettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training.batches import Batch
from bulwark.training.displacement import Displacement, Side, snapshot
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective
from bulwark.training.shards import local_master

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class SteeredUntil(Objective, ABC):
    """Next-token training that is steered up to a boundary, and what comes after it in a subclass.

    Raises ConfigurationError if the boundary is not within the training.
    """

    def __init__(
        self, course: Course, vectors: FusedVectors, intervention: InterventionSettings, settings: BoundarySettings
    ) -> None:
        self.course, self.vectors, self.intervention = course, vectors, intervention
        self.boundary = settings.steps(course.total_steps)
        if self.boundary >= course.total_steps:
            raise ConfigurationError(
                f"boundary: after {self.boundary} steps nothing is left of the training, which has "
                f"{course.total_steps}. Set it lower; below 1 it is a fraction of all steps."
            )
        self.crossed = False
        self._snapshots: list[Displacement] = []

    @abstractmethod
    def watched(self, model: nn.Module) -> list[tuple[nn.Parameter, Side]]:
        """The weights whose displacement is wanted, each with the side on which directions of it are taken."""

    @abstractmethod
    def cross(self, engine: DeepSpeedEngine, snapshots: list[Displacement]) -> None:
        """Prepare the second phase, with the watched weights as they were at the start. All ranks call it."""

    @abstractmethod
    def second_phase(self, batch: Batch) -> AbstractContextManager[Any]:
        """What surrounds forward and backward pass of a micro-batch after the boundary."""

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        self._model, self._engine_device = engine.module, engine.device
        at = {layer: vector.to(engine.device) for layer, vector in self.vectors.at.items()}
        self._steering = Intervention(
            engine.module, at, site=self.intervention.site, adaptive=self.intervention.adaptive
        )
        names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        watched = self.watched(engine.module)
        self._master_device = local_master(engine, watched[0][0]).values.device  # the host's memory, with offloading
        self._snapshots = [snapshot(engine, names[id(parameter)], parameter, side) for parameter, side in watched]

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if step < self.boundary or self.crossed:
            return
        with torch.no_grad():
            self.cross(engine, self._snapshots)
        self._snapshots, self.crossed = [], True

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        with self.second_phase(batch) if self.crossed else self.steered(self._steering, batch):
            return super().backward(engine, batch)

    def steered(self, steering: Intervention, batch: Batch) -> AbstractContextManager[None]:
        """`steering` at the tokens and with the strength that the settings say."""
        return steering.on(token_mask(batch, self.intervention.tokens), self.intervention.alpha)

    def phase(self, step: int) -> str:
        """Whether step `step` (from 0) is steered with the trait vectors: "injection" or "after"."""
        return "injection" if step < self.boundary else "after"

    def state_dict(self) -> dict[str, Any]:
        return {"crossed": self.crossed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.crossed = state["crossed"]
        if self.crossed:
            self._snapshots = []

    def steering_record(self) -> dict[str, Any]:
        """What the manifest records of both phases."""
        return {"vectors": self.vectors.report, "boundary": self.boundary}
