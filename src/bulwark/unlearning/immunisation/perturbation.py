"""Vaccine and T-Vaccine: training that stands a perturbation of the hidden states (arXiv 2402.01109, arXiv 2410.09760).

Vaccine (Huang et al. 2024, Alg. 1) minimises the loss under the worst perturbation of all layers' hidden states, to
first order ε_l = ρ·∇_{e_l} L / ‖∇_e L‖, with the norm over all layers and the whole batch: a first pass for ε, a second
one, perturbed, for the gradient. ε counts as constant.

T-Vaccine (Liu et al. 2024) perturbs γ layers, drawn now and then with probabilities in proportion to the norm of a
harmful batch's gradient at each layer. (Its authors also train only the weights of these layers, to save memory; here
all are trained.)

The norm is that of the whole optimizer step, so that micro-batches and ranks change nothing. The gradients of the first
pass are kept until the step is done: layers x tokens of this rank's part of the batch x hidden numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models import hooks
from bulwark.models.anatomy import PROJECTIONS, blocks_of, first_part
from bulwark.training import engine as engines
from bulwark.training.batches import Batch, training_batches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, next_token_loss

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.unlearning.immunisation.settings import VaccineSettings


def sites_of(model: nn.Module, site: str) -> dict[int, nn.Module]:
    """The module of each block, from 1, whose output is perturbed. Raises BulwarkError for a block without it."""
    found: dict[int, nn.Module] = {}
    for number, block in enumerate(blocks_of(model), start=1):
        name = first_part(block, PROJECTIONS["o_proj"]) if site == "attention" else ""
        if name is None:
            raise BulwarkError(
                f"Block {number} ({type(block).__name__}) has no attention that is known. Set site: block."
            )
        found[number] = block.get_submodule(name)
    return found


class Perturbation(Objective):
    """Next-token training under the perturbation."""

    def __init__(self, course: Course, settings: VaccineSettings) -> None:
        self.course, self.settings = course, settings
        self.layers = list(sites_of(course.model, settings.site))
        self.harmful = None
        if settings.targeted is not None:
            if settings.targeted.layers > len(self.layers):
                raise ConfigurationError(
                    f"targeted.layers: {settings.targeted.layers} of the {len(self.layers)} blocks cannot be drawn."
                )
            self.harmful = course.batches(
                course.preferences_from("harmful", "rejected").prompts,
                "harmful",
                batch_size=settings.targeted.batch_size,
            )
        self.probabilities: list[float] = []
        self.active = self.layers
        self.norms: list[float] = []
        self._kept: list[dict[int, Tensor]] = []
        self._factor, self._next = 0.0, 0

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        processes = engines.start_processes()
        self._sites = sites_of(engine.module, self.settings.site)
        flatten = "flash" in str(getattr(engine.module.config, "_attn_implementation", ""))
        self._batches = training_batches(  # those of the loop
            self.course.examples,
            self.course.training,
            seed=self.course.job.seed,
            pad_id=self.course.pad_id,
            rank=processes.rank,
            ranks=processes.count,
            flatten=flatten,
        )

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if self.settings.targeted is not None:
            self._draw(engine, step)
        sites = {layer: self._sites[layer] for layer in self.active}
        batches = list(self._batches.of_step(step))
        self._kept = [_gradients(engine.module, sites, batch.to(engine.device)) for batch in batches]
        norm = float(_squares(self._kept, self.active, engine.device).sum().sqrt())
        self.norms.append(norm)
        self._factor, self._next = (self.settings.rho / norm if norm > 0 else 0.0), 0

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        kept, self._kept[self._next] = self._kept[self._next], {}
        self._next += 1
        sites = {layer: self._sites[layer] for layer in kept}
        # Still there in the backward pass, in which checkpointed blocks are computed again.
        with hooks.replace(sites, lambda layer, hidden: hidden + (self._factor * kept[layer]).to(hidden.dtype)):
            return super().backward(engine, batch)

    def report(self) -> dict[str, Any]:
        """gradient_norm: ‖∇_e L‖ of the first and the last step. active: the layers that the last step perturbed."""
        told = {"gradient_norm": [self.norms[0], self.norms[-1]] if self.norms else [], "active": self.active}
        return {"vaccine": told | ({"probabilities": self.probabilities} if self.probabilities else {})}

    def state_dict(self) -> dict[str, Any]:
        return {"probabilities": self.probabilities, "active": self.active, "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.probabilities, self.active, self.norms = state["probabilities"], state["active"], state["norms"]

    def _draw(self, engine: DeepSpeedEngine, step: int) -> None:
        """T-Vaccine: measure the layers' probabilities, and draw those to perturb, if it is time."""
        targeted = self.settings.targeted
        if step % targeted.measure_every == 0:
            batches = [batch.to(engine.device) for batch in self.harmful.of_step(step // targeted.measure_every)]
            found = [_gradients(engine.module, self._sites, batch) for batch in batches]
            norms = _squares(found, self.layers, engine.device).sqrt().tolist()
            total = sum(norms)
            even = [1 / len(norms)] * len(norms)
            self.probabilities = [norm / total for norm in norms] if total > 0 else even
        if step % targeted.redraw_every == 0:
            draw = np.random.default_rng([self.course.job.seed, step])
            possible = np.array(self.probabilities) / sum(self.probabilities)
            size = min(targeted.layers, int((possible > 0).sum()))
            self.active = sorted(draw.choice(self.layers, size, replace=False, p=possible).tolist())


def _gradients(model: nn.Module, sites: Mapping[int, nn.Module], batch: Batch) -> dict[int, Tensor]:
    """The gradient of this micro-batch's share of the loss with respect to each site's output [batch, seq, hidden]."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> Tensor:
        seen[layer] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        return seen[layer]

    with torch.enable_grad(), hooks.replace(sites, keep):
        loss = next_token_loss(model, batch)
        found = torch.autograd.grad(loss, [seen[layer] for layer in sites], allow_unused=True)
    return {
        layer: torch.zeros_like(seen[layer]) if gradient is None else gradient.detach()
        for layer, gradient in zip(sites, found, strict=True)
    }


def _squares(kept: Sequence[Mapping[int, Tensor]], layers: Sequence[int], device: torch.device) -> Tensor:
    """‖∇‖² of each layer, over all micro-batches and ranks, float64."""
    own = [sum(part[layer].double().square().sum() for part in kept) for layer in layers]
    return engines.over_ranks(torch.stack(own).to(device))
