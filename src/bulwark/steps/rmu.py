"""RMU: at one layer, hidden states of the forget set become one large random vector, those of the retain set stay.

L = mean (h(forget) - c·u)² + α · mean (h(retain) - h_frozen(retain))², over tokens and coordinates, with u a vector of
numbers drawn uniformly from [0, 1), scaled to length 1 (Li et al. 2024, arXiv 2403.03218, Sec. 4). α is
`retain_weight`. Only matrices of a few blocks at and before that layer are trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from torch import nn

    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """layer: whose output is changed, and blocks: whose matrices are trained; both count from 1, the authors' from 0.

    parts: which of their matrices. coefficient: c, the length of the vector.
    """

    layer: int = Field(8, ge=1)
    blocks: tuple[int, ...] = Field((6, 7, 8), min_length=1)
    parts: tuple[Literal["o_proj", "down_proj"], ...] = Field(("down_proj",), min_length=1)
    coefficient: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _reaches_the_layer(self) -> Settings:
        if min(self.blocks) < 1 or max(self.blocks) > self.layer:
            raise ValueError(
                f"blocks count from 1, and those after layer {self.layer} have no part in its output; "
                f"found {list(self.blocks)}"
            )
        if self.training.lora is not None:
            raise ValueError("RMU trains a few matrices whole; leave training.lora out")
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """Both mean squares at the layer, of the model with all but a few matrices frozen."""
    import torch

    from bulwark.models.anatomy import blocks_of, check_layer
    from bulwark.training.objectives import hidden_states
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import mean_square
    from bulwark.unlearning.reference import Reference
    from bulwark.unlearning.settings import ReferenceSettings

    check_layer(settings.layer, len(blocks_of(course.model)), "layer")
    _freeze(course.model, settings)
    reference = Reference(course, ReferenceSettings())
    generator = torch.Generator().manual_seed(course.job.seed)
    direction = torch.rand(course.model.config.get_text_config().hidden_size, generator=generator)
    target = settings.coefficient * direction / direction.norm()

    class Rmu(ForgetRetain):
        def retain_loss(self, model, batch):
            then = reference.hidden_states(model, batch)[settings.layer]
            now = hidden_states(model, batch)[settings.layer]
            return mean_square(now, then, batch.positions).sum() / max(1, batch.step_positions)

        def forget_loss(self, model, batch):
            states = hidden_states(model, batch)[settings.layer]
            losses = mean_square(states, target.to(states.device), batch.positions)
            return losses.sum() / max(1, batch.step_positions)

    return Rmu(course, settings)


def _freeze(model: nn.Module, settings: Settings) -> None:
    from bulwark.errors import BulwarkError
    from bulwark.models.anatomy import PROJECTIONS, blocks_of, first_part

    model.requires_grad_(False)
    blocks = blocks_of(model)
    for number in settings.blocks:
        for part in settings.parts:
            name = first_part(blocks[number - 1], PROJECTIONS[part])
            if name is None:
                raise BulwarkError(f"parts: block {number} of {type(model).__name__} has no {part}.")
            blocks[number - 1].get_submodule(name).weight.requires_grad_(True)
