"""Changing hidden states while a model computes, in the forward and in the backward pass.

One context manager for every use: the hooks stay installed until the backward pass is over, because gradient
checkpointing computes parts of the forward pass again there, and has to find them unchanged (inside a block, a hook
that is gone by then gives wrong gradients). Which tokens are meant is an explicit mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import Site, hidden_size, site_module
from bulwark.steering.settings import Tokens
from bulwark.training.batches import IGNORED, Batch

_EPSILON = 1e-8


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
        self._modules = {layer: site_module(model, layer, site) for layer in at}


class Intervention(_Hooked):
    """Adds s·m·v to the output of a module: steering (arXiv 2507.21509, Sec. 5; arXiv 2609.10142, Sec. 3).

    model: a causal LM, or the engine around it. at: layer key → vector v [hidden], used with its own norm.
    adaptive: s = alpha·(mean of ‖h_t‖ over the row's own tokens with m = 1)/(‖v‖ + 1e-8), else s = alpha. (The authors
        take the mean over the micro-batch; per row, the strength does not depend on what else is in the batch.) The
        gradient flows through ‖h‖, as theirs does.
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
            return self._strength(layer, hidden, _fitting(mask, hidden), alpha)

        return hooks.add(self._modules, self.at, strength, lambda hidden: _fitting(mask, hidden))

    def _strength(self, layer: int, hidden: Tensor, mask: Tensor, alpha: float | Tensor) -> Tensor:
        """s per row, [batch, 1, 1] in fp32, for hidden states [batch, seq, hidden]."""
        alpha = torch.as_tensor(alpha, dtype=torch.float32, device=hidden.device).reshape(-1, 1, 1)
        if not self.adaptive:
            return alpha
        weights = mask.float()
        norms = hidden.float().norm(dim=-1)
        mean = (norms * weights).sum(-1) / weights.sum(-1).clamp(min=1.0)
        return alpha * (mean / (self.at[layer].norm() + _EPSILON)).reshape(-1, 1, 1)


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

        return hooks.replace(self._modules, ablated)


def token_mask(batch: Batch, tokens: Tokens) -> Tensor:
    """The tokens of a batch that an intervention is about, bool [batch, seq].

    "response": the supervised tokens; "predicting": the positions whose output predicts them; "all": all but padding.
    """
    if tokens == "all":
        return batch.attention_mask.bool()
    response = batch.labels != IGNORED
    return response if tokens == "response" else response.roll(-1, dims=1) & _not_last(response)


def _not_last(mask: Tensor) -> Tensor:
    allowed = torch.ones_like(mask)
    allowed[:, -1] = False
    return allowed


def _fitting(mask: Tensor, hidden: Tensor) -> Tensor:
    """The mask where the hidden states are. Raises BulwarkError if it is of other tokens."""
    if hidden.shape[:2] != mask.shape:
        raise BulwarkError(
            f"The intervention was given a mask of {list(mask.shape)} tokens, the model has {list(hidden.shape[:2])}."
        )
    return mask.to(hidden.device)
