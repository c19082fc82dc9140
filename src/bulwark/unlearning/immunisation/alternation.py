"""Lisa, lazy safety alignment (Huang et al. 2024, arXiv 2405.18641, Alg. 1): two data sets in turn, held together.

A provider fine-tunes on what a user has uploaded. Phases of alignment data and of the user's data alternate, each with

    f(w) + (ρ/2)·‖w - w_switch‖²

where w_switch are the weights at the last change of phase. The gradient ρ·(w - w_switch) of the second term is added on
the master weights; the reported losses are f alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bulwark.training import engine as engines
from bulwark.training import shards
from bulwark.training.batches import Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.unlearning.curves import Curves
from bulwark.unlearning.immunisation import pieces

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.unlearning.immunisation.settings import AlternationSettings


class Alternation(Objective):
    """Phases in turn, alignment first; the loop's own batches are the user's."""

    def __init__(self, course: Course, settings: AlternationSettings) -> None:
        self.settings = settings
        self.examples = course.examples_from("alignment")
        self.alignment = course.batches(self.examples.prompts, "alignment")
        self.first_held = math.floor(settings.proximal_after * course.total_steps)
        self._anchor: list[Tensor] = []
        self._step, self._to_come = 0, []
        self._curves = Curves("alignment", "user", "drift")

    def phase(self, step: int) -> str:
        both = self.settings.alignment_steps + self.settings.user_steps
        return "alignment" if step % both < self.settings.alignment_steps else "user"

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        self._anchor = pieces.copied(pieces.masters(engine))

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self._step = step
        self._curves.begin(engine.device)
        if step and self.phase(step) != self.phase(step - 1):
            self._anchor = pieces.copied(pieces.masters(engine))
        self._to_come = list(self.alignment.of_step(step)) if self.phase(step) == "alignment" else []

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        name = self.phase(self._step)
        if name == "user":
            loss = super().backward(engine, batch)
            self._curves.add(name, loss)
            return loss
        batches, self._to_come = self._to_come, []
        total = torch.zeros((), device=engine.device)
        for number, part in enumerate(batches, start=1):  # all of them in place of the loop's first, no more later
            engine.set_gradient_accumulation_boundary(number == len(batches))
            loss = next_token_loss(engine, part.to(engine.device))
            engines.backward(engine, loss)
            self._curves.add(name, loss)
            total += loss.detach()
        return total

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        away = [
            piece.values - anchor.to(piece.values.device)
            for piece, anchor in zip(pieces.masters(engine), self._anchor, strict=True)
        ]
        drift = pieces.length(engine, away)
        self._curves.add("drift", drift / torch.distributed.get_world_size())
        if step < self.first_held or self.settings.rho == 0:
            return
        for parameter, piece, pull in zip(pieces.trained(engine), pieces.masters(engine), away, strict=True):
            gradient = shards.local_gradient(engine, parameter)
            if gradient is None:
                continue
            if gradient.replicated == piece.replicated:
                gradient.values.add_(pull, alpha=self.settings.rho)
            else:  # bfloat16 at stage 1: gradients are whole on every rank, the master weights are not
                whole = torch.zeros_like(gradient.values)
                whole[piece.start : piece.end] = pull
                gradient.values.add_(engines.over_ranks(whole), alpha=self.settings.rho)
        shards.gradients_edited(engine, pieces.trained(engine))

    def metrics(self) -> dict[str, float]:
        return self._curves.latest("lisa")

    def report(self) -> dict[str, Any]:
        """Losses by phase (0 in steps of the other), and ‖w - w_switch‖ before each step."""
        return {"lisa": {"alignment_examples": len(self.examples.prompts), "losses": self._curves.report()}}

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self._anchor, "curves": self._curves.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._anchor = state["anchor"]
        self._curves.restore(state["curves"])
