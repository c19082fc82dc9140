"""Booster (Huang et al. 2024, arXiv 2409.01586, Alg. 1): a harmful step shall lower the harmful loss less.

With f the loss on alignment data and h that on harmful data, it minimises

    f(w) + λ·(h(w) - h(w - α·∇h(w)/‖∇h(w)‖))

by the gradient g = ∇f(w) + λ·(∇h(w) - ∇h(w - α·∇h(w)/‖∇h(w)‖)), in which, as in the paper, the perturbation counts as
constant. Three passes: two on a harmful batch before the step's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.unlearning.curves import Curves
from bulwark.unlearning.immunisation import pieces

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.unlearning.immunisation.settings import AttenuationSettings


class Attenuation(Objective):
    """Next-token training, with the attenuation term's gradient added to the step's."""

    def __init__(self, course: Course, settings: AttenuationSettings) -> None:
        self.settings = settings
        self.examples = course.preferences_from("attack", "rejected")
        self.harmful = course.batches(
            self.examples.prompts,
            "attack",
            batch_size=settings.attack_batch_size or course.training.batch_size,
            micro_batch_size=settings.attack_micro_batch_size or course.training.micro_batch_size,
        )
        self._term: list[Tensor | None] = []
        self._curves = Curves("alignment", "harmful", "after_a_harmful_step")

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self._curves.begin(engine.device)
        batches = list(self.harmful.of_step(step))
        here = self._harmful_gradient(engine, batches, "harmful")
        start = pieces.copied(pieces.masters(engine))
        directions = pieces.at_masters(engine, here)
        norm = pieces.length(engine, directions)
        factor = float(self.settings.alpha / norm) if norm > 0 else 0.0
        for piece, direction in zip(pieces.masters(engine), directions, strict=True):
            if direction is not None:
                piece.values.sub_(direction.to(piece.values.device), alpha=factor)
        engines.publish(engine)
        there = self._harmful_gradient(engine, batches, "after_a_harmful_step")
        pieces.put_back(engine, start)
        self._term = [
            None if first is None or second is None else first.sub_(second).mul_(self.settings.lambda_)
            for first, second in zip(here, there, strict=True)
        ]

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        loss = super().backward(engine, batch)
        self._curves.add("alignment", loss)
        return loss

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        pieces.add_to_gradients(engine, self._term)
        self._term = []

    def metrics(self) -> dict[str, float]:
        return self._curves.latest("booster")

    def report(self) -> dict[str, Any]:
        return {"booster": {"harmful_examples": len(self.examples.prompts), "losses": self._curves.report()}}

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self._curves.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curves.restore(state["curves"])

    def _harmful_gradient(self, engine: DeepSpeedEngine, batches: list[Batch], name: str) -> list[Tensor | None]:
        """∇h at the present weights, this rank's pieces; afterwards the engine has no gradient."""
        for number, batch in enumerate(batches, start=1):
            engine.set_gradient_accumulation_boundary(number == len(batches))
            loss = next_token_loss(engine, batch.to(engine.device))
            engines.backward(engine, loss)
            self._curves.add(name, loss)
        found = pieces.gradients(engine)
        engines.clear_gradients(engine)
        return found
