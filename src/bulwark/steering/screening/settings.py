"""What can be set about detecting rows that carry a trait. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bulwark.settings import Closed
from bulwark.steering.settings import InterventionSettings, VectorTraining


class PerturbationSettings(Closed):
    """How the gradient probe takes the second derivative of a row's loss along the vector v, at its supervised tokens.

    derivative: "finite", from the gradients at h and h + a·v; "exact", by differentiating twice, which is slower, needs
        more memory, and cannot be done where the weights are sharded (zero_stage 3).
    relative / alpha: the size of the step, exactly one of them: ‖a·v‖ as a share of the row's mean ‖h‖, or a itself.
        The authors' a = 0.01 is for float32; in bfloat16 most elements of h do not change by it. (On the miniature the
        cosine in bfloat16 correlates with the exact one by 0.2 to 0.9 for a = 0.01, by 0.98 and more for 0.05 of ‖h‖.)
    diff_epsilon: b, by which the authors divide in place of a; it only scales the projection, by a/b.
    recompute: whether the probe's passes save memory by gradient checkpointing where the training does. Without it they
        are faster, and keep what all upper blocks compute for two copies of each row.
    """

    derivative: Literal["finite", "exact"] = "finite"
    relative: float | None = Field(0.05, gt=0)
    alpha: float | None = Field(None, gt=0)
    diff_epsilon: float | None = Field(None, gt=0)
    recompute: bool = True

    @model_validator(mode="after")
    def _one_size(self) -> PerturbationSettings:
        if (self.relative is None) == (self.alpha is None):
            raise ValueError("give the perturbation's size either as relative or as alpha, and set the other to null")
        return self


class ScreeningSettings(VectorTraining):
    """Training that judges rows one by one. vectors: with a single layer, at which rows are judged."""

    @model_validator(mode="after")
    def _rows_can_be_told_apart(self) -> ScreeningSettings:
        if len(self.vectors.layers) > 1:
            raise ValueError(f"rows are judged at one layer, vectors.layers names {len(self.vectors.layers)}")
        if self.training.lora is not None and self.training.lora.dropout > 0:
            raise ValueError(
                "rows are compared with and without the vector, and dropout would differ between the two: set "
                "training.lora.dropout to 0"
            )
        if self.training.optimizer == "schedulefree_adamw":
            raise ValueError(
                "a step in which no row is learned must not move the weights, but schedulefree_adamw averages them in "
                "every step; use adamw or sgd"
            )
        return self


class DetectorSettings(Closed):
    """All scores of `bulwark.steering.screening.detectors.score_rows` at once.

    intervention: what delta-loss adds; perturbation: what the gradient probe adds. batch_size: rows at a time.
    """

    intervention: InterventionSettings = InterventionSettings()
    perturbation: PerturbationSettings = PerturbationSettings()
    batch_size: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _splittable(self) -> DetectorSettings:
        refuse_other_sites(self.intervention)
        return self


def refuse_other_sites(intervention: InterventionSettings) -> None:
    """Raise ValueError unless the vector is added after a block, where detectors split the model."""
    if intervention.site != "block":
        raise ValueError(f'intervention.site is {intervention.site}, but detectors can only add to "block" outputs')
