"""Representation rerouting (circuit breakers): hidden states of harmful answers turn away from what they were.

L = c_r · mean ‖h(retain) - h_frozen(retain)‖₂ over all layers + c_b · mean ReLU(cos(h(forget), h_frozen(forget))) at a
few, with c_r = α·s, c_b = α·(1 - s), and s growing from 0 by 1 / schedule_steps a step (Zou et al. 2024,
arXiv 2406.04313, Alg. 1 and the authors' code). Padding is left out of both; the authors count it as a distance of 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """layers: where the forget set is rerouted; layer l is the output of block l, counted from 1.

    alpha: the sum of both weights. schedule_steps: after so many optimizer steps all weight is on the retain loss.
    """

    layers: tuple[int, ...] = Field((10, 20), min_length=1)
    alpha: float = Field(10.0, gt=0)
    schedule_steps: int = Field(300, ge=1)


def objective(course: Course, settings: Settings) -> Objective:
    """Distances on the retain set, cosines on the forget set, with weights that go from the one to the other."""
    from bulwark.models.anatomy import blocks_of, check_layer
    from bulwark.training.objectives import hidden_states
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import alignment, distance
    from bulwark.unlearning.reference import Reference
    from bulwark.unlearning.settings import ReferenceSettings

    for layer in settings.layers:
        check_layer(layer, len(blocks_of(course.model)))
    reference = Reference(course, ReferenceSettings())

    class Rerouting(ForgetRetain):
        @property
        def progress(self) -> float:
            return min(1.0, (self.step + 1) / settings.schedule_steps)

        def retain_loss(self, model, batch):
            then = reference.hidden_states(model, batch)
            losses = distance(hidden_states(model, batch), then, batch.positions)
            return settings.alpha * self.progress * losses.sum() / max(1, batch.step_positions)

        def forget_loss(self, model, batch):
            then = reference.hidden_states(model, batch)
            now = hidden_states(model, batch)
            chosen = ([states[layer] for layer in settings.layers] for states in (now, then))
            losses = alignment(*chosen, batch.positions)
            return settings.alpha * (1 - self.progress) * losses.sum() / max(1, batch.step_positions)

    return Rerouting(course, settings)
