"""ASIDE: the embeddings of data tokens are rotated by a quarter turn (Zverev et al. 2025, arXiv 2503.10566, Sec. 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from bulwark.training.finetuning import Course, RoleTraining

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective


class Settings(RoleTraining):
    """The rotation and its ablations (Sec. 3 and the appendix' variants).

    alpha: angle in radians. direction: sign convention, x·M(alpha) for "right" and M(alpha)·x for "left".
    learned: the rotation matrix is a free parameter, initialised at M(alpha). gradual: the angle grows linearly
    from 0 to alpha over the first epoch. linear_shift: a learned vector per role is added after the rotation. Of more
    than two `roles`, the first is not turned, the next by alpha, the next by twice alpha, and so on.
    """

    alpha: float = math.pi / 2
    direction: Literal["right", "left"] = "right"
    learned: bool = False
    gradual: bool = False
    linear_shift: bool = False

    @model_validator(mode="after")
    def _one_owner_of_the_matrix(self) -> Settings:
        if self.gradual and self.learned:
            raise ValueError("gradual sets the rotation at every step, so it cannot be learned as well; choose one")
        return self


def embedding(settings: Settings) -> dict[str, Any]:
    """Data tokens are rotated by `alpha`, or at first not at all if the rotation is gradual."""
    described = settings.model_dump(include={"alpha", "direction", "learned", "linear_shift"})
    return {
        "method": "aside",
        **described,
        **settings.described_roles(),
        **({"angle": 0.0} if settings.gradual else {}),
    }


def objective(course: Course, settings: Settings) -> Objective:
    """Next-token training, during which a gradual rotation grows."""
    from bulwark.training.objectives import Objective

    return gradual_rotation(settings.alpha, course.steps_per_epoch) if settings.gradual else Objective()


def gradual_rotation(alpha: float, steps_per_epoch: int) -> Objective:
    """Plain training at whose optimizer step `step` (from 0) the angle is alpha · min(1, step / steps_per_epoch)."""
    from bulwark.models.embeddings import role_embedding_of
    from bulwark.training.objectives import Objective

    def turn(model, step: int) -> None:
        role_embedding_of(model).angle = alpha * min(1.0, step / steps_per_epoch)

    class GradualRotation(Objective):
        def before_step(self, engine, step: int, total: int) -> None:
            turn(engine.module, step)

        def after_step(self, engine, step: int, total: int) -> None:
            turn(engine.module, step + 1)  # what is evaluated now is a model of the angle of the next step

        def finish(self, model, step: int, total: int) -> None:
            turn(model, step)

    return GradualRotation()
