"""Forgetting one data set while another is kept: the objective of every defense that is two losses.

    retain_weight · L_retain(retain batch) + forget_weight · L_forget(forget batch)

A method gives `forget_loss`, and `retain_loss` where that is not the next token's cross-entropy. The loop brings the
retain batches; the forget batches of an optimizer step are all taken at its first micro-batch, behind the retain pass,
so that the loop's other micro-batches stay as they are. (Under ZeRO-3 the first backward pass of a step has to reach
every trained weight, which the retain loss does and a loss on inner layers does not.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.unlearning.curves import Curves
from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.prompts.builder import Prompt


class ForgetRetain(Objective, ABC):
    """Both losses, each over its own batch, with a record of the two."""

    def __init__(self, course: Course, settings: ForgettingSettings) -> None:
        self.course, self.settings = course, settings
        self.examples = (
            course.preferences_from("forget", settings.side) if settings.side else course.examples_from("forget")
        )
        self.forgetting = self.batches_of(self.examples.prompts)
        self.step, self.total = 0, course.total_steps
        self._to_come: list[Batch] = []
        self._losses = Curves("retain", "forget")

    def batches_of(self, prompts: Sequence[Prompt]) -> StepBatches:
        """The forget set's batches, of its examples as these prompts."""
        return self.course.batches(
            prompts,
            "forget",
            batch_size=self.settings.forget_batch_size or self.course.training.batch_size,
            micro_batch_size=self.settings.forget_micro_batch_size or self.course.training.micro_batch_size,
        )

    @abstractmethod
    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This forget micro-batch's share of the step's loss, as for `loss`."""

    def retain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This retain micro-batch's share of the step's loss."""
        return next_token_loss(model, batch)

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self.step, self.total = step, total
        self._to_come = list(self.forgetting.of_step(step))
        self._losses.begin(engine.device)

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        forget, self._to_come = self._to_come, []
        last = engine.is_gradient_accumulation_boundary()
        engine.set_gradient_accumulation_boundary(last and not forget)
        retained = self.settings.retain_weight * self.retain_loss(engine, batch)
        engines.backward(engine, retained)
        self._losses.add("retain", retained)
        total = retained.detach().float()
        for number, part in enumerate(forget, start=1):
            engine.set_gradient_accumulation_boundary(last and number == len(forget))
            forgotten = self.settings.forget_weight * self.forget_loss(engine, part.to(engine.device))
            engines.backward(engine, forgotten)
            self._losses.add("forget", forgotten)
            total = total + forgotten.detach()
        return total

    def metrics(self) -> dict[str, float]:
        return self._losses.latest("loss")

    def report(self) -> dict[str, Any]:
        """Both losses over the steps, at most 200 points [step, retain, forget], each weighted and over all ranks."""
        losses = self._losses.report()
        if not losses:
            return {}
        return {
            "forgetting": {
                "examples": len(self.examples.prompts),
                "truncated": self.examples.truncated,
                "losses": losses["points"],
            }
        }

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.restore(state["losses"])
