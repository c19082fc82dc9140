"""Changing hidden states while a model computes, in the forward and in the backward pass.

The hooks stay installed until the backward pass is over, because gradient checkpointing computes parts of the forward
pass again there: inside a block, a hook that is gone by then gives wrong gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import Site, hidden_size, site_module
from bulwark.steering.settings import Tokens
from bulwark.training.batches import IGNORED, Batch

_EPSILON = 1e-8

Positions = Literal["all", "prompt", "response"]


class _Hooked:
    """The modules, one per layer, whose outputs are changed, and the vector of each."""

    def __init__(self, model: nn.Module, at: Mapping[int, Tensor], site: Site) -> None:
        width = hidden_size(model)
        for layer, vector in at.items():
            if tuple(vector.shape) != (width,):
                raise BulwarkError(
                    f"layer {layer}: the vector has shape {list(vector.shape)}, the model needs [{width}]."
                )
        self.at = {layer: vector.detach().float() for layer, vector in at.items()}
        self.modules = {layer: site_module(model, layer, site) for layer in at}


class Intervention(_Hooked):
    """Adds s·m·v to the output of a module: steering (arXiv 2507.21509, Sec. 5; arXiv 2609.10142, Sec. 3).

    model: a causal LM, or the engine around it. at: layer key → vector v [hidden], used with its own norm.
    adaptive: s = alpha·(mean of ‖h_t‖ over the row's own tokens with m = 1)/(‖v‖ + 1e-8), else s = alpha. (The authors
        take the mean over the micro-batch.) The gradient flows through ‖h‖, as theirs does.
    Raises ConfigurationError for layer keys outside 1 … N-1, BulwarkError for a vector of another size.
    """

    def __init__(
        self, model: nn.Module, at: Mapping[int, Tensor], *, site: Site = "block", adaptive: bool = False
    ) -> None:
        super().__init__(model, at, site)
        self.adaptive = adaptive

    def on(self, mask: Tensor, alpha: float | Tensor) -> contextlib.AbstractContextManager[None]:
        """Within it the model is steered at the tokens of `mask` [batch, seq] (1 or 0; weights in between are allowed).

        alpha: the strength, one number or one per row [batch]. Stay inside until the backward pass is done.
        """

        def strength(layer: int, hidden: Tensor) -> Tensor:
            scale = torch.as_tensor(alpha, dtype=torch.float32, device=hidden.device).reshape(-1, 1, 1)
            if not self.adaptive:
                return scale
            mean = mean_norm(hidden, _fitting(mask, hidden))
            return scale * (mean / (self.at[layer].norm() + _EPSILON)).reshape(-1, 1, 1)

        return hooks.add(self.modules, self.at, strength, lambda hidden: _fitting(mask, hidden))


class Ablation(_Hooked):
    """Removes the component along v: h' = h - m·(h·v̂)v̂, the intervention of concept ablation fine-tuning (CAFT).

    Raises as `Intervention` does, and BulwarkError for a vector without a direction.
    """

    def __init__(self, model: nn.Module, at: Mapping[int, Tensor], *, site: Site = "block") -> None:
        super().__init__(model, at, site)
        if weak := [layer for layer, vector in self.at.items() if vector.norm() <= 1e-10]:
            raise BulwarkError(f"The vector of layer {weak[0]} is 0 and has no direction to ablate.")

    def on(self, mask: Tensor) -> contextlib.AbstractContextManager[None]:
        """Within it the direction is ablated at the tokens of `mask` [batch, seq]; stay inside for the backward."""

        def ablated(layer: int, hidden: Tensor) -> Tensor:
            unit = (self.at[layer] / self.at[layer].norm()).to(hidden.device)
            along = (hidden.float() @ unit * _fitting(mask, hidden).float()).unsqueeze(-1)
            return hidden - (along * unit).to(hidden.dtype)

        return hooks.replace(self.modules, ablated)


def steer_generation(
    model: nn.Module, layer: int, vector: Tensor, coefficient: float, positions: Positions = "response"
) -> contextlib.AbstractContextManager[None]:
    """Within it, `coefficient`·`vector` is added to what block `layer` puts out while the model generates.

    As persona vectors' code (arXiv 2507.21509, Sec. 3.2). positions: "all" tokens; those of the "prompt", which is what
    goes through the model at once; or of the "response": the last position of every pass, so the answer's tokens and
    the prompt's last one, which predicts the first of them. Prompts must be padded on the left, as
    `bulwark.models.generation` does. Contexts may be nested, for several layers. Raises as `Intervention` does.
    """

    def mask(hidden: Tensor) -> Tensor:
        steered = torch.zeros(hidden.shape[:2], device=hidden.device)
        if positions == "response":
            steered[:, -1] = 1.0
        elif positions == "all" or hidden.shape[1] > 1:
            steered[:] = 1.0
        return steered

    hooked = _Hooked(model, {layer: vector}, "block")
    return hooks.add(hooked.modules, hooked.at, lambda _, __: coefficient, mask)


def mean_norm(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of ‖h_t‖ over each row's tokens of `mask`, [batch] in fp32; 0 for a row without any."""
    weights = mask.float()
    return (hidden.float().norm(dim=-1) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def token_mask(batch: Batch, tokens: Tokens) -> Tensor:
    """The tokens of a batch that an intervention is about, bool [batch, seq].

    "response": the supervised tokens; "predicting": the positions whose output predicts them; "all": all but padding.
    """
    if tokens == "all":
        return batch.attention_mask.bool()
    response = batch.labels != IGNORED
    return response if tokens == "response" else torch.nn.functional.pad(response[:, 1:], (0, 1))


def _fitting(mask: Tensor, hidden: Tensor) -> Tensor:
    """The mask where the hidden states are. Raises BulwarkError if it is of other tokens."""
    if hidden.shape[:2] != mask.shape:
        raise BulwarkError(
            f"The intervention was given a mask of {list(mask.shape)} tokens, the model has {list(hidden.shape[:2])}."
        )
    return mask.to(hidden.device)
