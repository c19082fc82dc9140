"""What can be set about preserving what a steered phase has done to the weights, and about continuing it. Torch-free.

Both (Guan et al., arXiv 2609.10142, Sec. 4.1 and 4.2) steer until a boundary and then do something with ΔW, the
displacement of the weights up to there. What the authors' code does differently from the paper, or wrongly, has an
explicit name that says "as_published".
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bulwark.settings import Closed
from bulwark.steering.settings import check_last_weights
from bulwark.training.settings import TrainingSettings


class BoundarySettings(Closed):
    """boundary: how long the model is steered, in optimizer steps (a whole number K: steps 0 … K-1 are), or as a
    fraction of all steps (a number below 1)."""

    boundary: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)]

    def steps(self, total: int) -> int:
        """K for a training of `total` optimizer steps."""
        return self.boundary if isinstance(self.boundary, int) else math.ceil(self.boundary * total)


class PreservationSettings(BoundarySettings):
    """After the boundary, training is kept from undoing ΔW.

    scope: "target_core", the matrices that write into the residual stream (attention's and MLP's output projections);
        or "all_linear", those that read from it as well. layers: blocks (from 1) whose matrices are protected.
    shape: "subspace", the `rank` main singular directions of each ΔW, of the output space for matrices that write into
        the residual stream, of the input space for those that read from it; or "flat", the one direction ΔW/‖ΔW‖.
    basis: "svd", by randomised subspace iteration with `oversample` more columns and `power_iterations`; or
        "qr_slice_as_published", a random part of ΔW's range.
    delta: take ΔW between fp32 "masters", or between "rounded_weights_as_published", which the model computes with.
    project: what is projected: the "update", by putting the weights right after each optimizer step, so that nothing of
        the optimizer escapes; the "gradient", as published (AdamW's preconditioner, moments and weight decay leave the
        subspace again); or "both".
    remove: "all" that lies along the directions, or only what is "eroding" ΔW along its direction.
    strength: the share of it that is removed.
    moments: what happens at the boundary to AdamW's moments, which remember gradients of the steered phase: "keep", as
        published; "project", the first moments of the protected matrices as the gradients are; or "reset", all.
    min_delta_norm: matrices that moved less have no direction. allow_partial: go on without them, and without experts
        that lie in one tensor, in place of stopping.
    """

    scope: Literal["target_core", "all_linear"] = "target_core"
    layers: tuple[Annotated[int, Field(ge=1)], ...] | Literal["all"] = "all"
    shape: Literal["subspace", "flat"] = "subspace"
    basis: Literal["svd", "qr_slice_as_published"] = "svd"
    rank: int = Field(8, ge=1)
    oversample: int = Field(4, ge=0)
    power_iterations: int = Field(2, ge=0)
    delta: Literal["masters", "rounded_weights_as_published"] = "masters"
    project: Literal["update", "gradient", "both"] = "update"
    remove: Literal["all", "eroding"] = "all"
    strength: float = Field(1.0, gt=0, le=1)
    moments: Literal["keep", "project", "reset"] = "project"
    min_delta_norm: float = Field(1e-12, ge=0)
    allow_partial: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> PreservationSettings:
        if isinstance(self.layers, tuple) and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers names one of them twice: {', '.join(map(str, self.layers))}")
        if self.layers == ():
            raise ValueError('layers is empty: name blocks from 1, or "all"')
        return self


class ContinuationSettings(BoundarySettings):
    """After the boundary, what ΔW adds to the residual stream is injected in place of the trait vector.

    modules: output projections of the steered layers, each with a vector u of its own, added to its output.
    source: "functional_mean", u = ΔW·x̄ with x̄ the mean input of the module over the steered tokens of the calibration;
        "svd_u", the sum of the `rank` main left singular vectors of ΔW, each turned to the same side of the trait
        vector v, weighted with its singular value.
    sign: u is turned to be "aligned" with +v, as published, or "opposite", along the direction in which the model has
        learned to compensate v.
    scale: "preserve_ratio", ‖u‖ adds up to ‖v‖ over the modules of a layer, shared out by their raw norms;
        "equal_share", ‖v‖ over the number of modules; "raw", as it is.
    calibration_steps, calibration_tokens: the calibration reads the micro-batches of the next optimizer steps, which
        are trained on afterwards, until it has read at least so many steps and steered tokens, over all ranks.
    min_delta_norm: a module whose weight moved less, or whose u is shorter, stops the training.
    """

    modules: tuple[Literal["o_proj", "down_proj"], ...] = Field(("o_proj", "down_proj"), min_length=1)
    source: Literal["functional_mean", "svd_u"] = "functional_mean"
    rank: int = Field(1, ge=1)
    sign: Literal["aligned", "opposite"] = "aligned"
    scale: Literal["preserve_ratio", "equal_share", "raw"] = "preserve_ratio"
    calibration_steps: int = Field(1, ge=1)
    calibration_tokens: int = Field(2048, ge=1)
    min_delta_norm: float = Field(1e-12, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ContinuationSettings:
        if len(set(self.modules)) < len(self.modules):
            raise ValueError(f"modules names one of them twice: {', '.join(self.modules)}")
        return self


def check_training(training: TrainingSettings, boundary: BoundarySettings, moments: str = "keep") -> None:
    """Raise ValueError for a training in which ΔW is not what an optimizer step does to a whole weight, or which may
    end with weights of the first phase."""
    if training.lora is not None:
        raise ValueError("ΔW is that of whole weights; leave out training.lora, adapters keep the weights as they are")
    if training.optimizer == "schedulefree_adamw":
        raise ValueError("schedulefree_adamw trains other weights than it ends with; use adamw or sgd")
    if training.max_steps is not None and boundary.steps(training.max_steps) >= training.max_steps:
        raise ValueError(
            f"nothing is left of the training's {training.max_steps} steps after the boundary {boundary.boundary}; set "
            "it lower"
        )
    check_last_weights(training, "after the boundary another phase begins")
    if training.optimizer != "adamw" and moments != "keep":
        raise ValueError(f"{training.optimizer} has no moments; set preservation.moments: keep")
