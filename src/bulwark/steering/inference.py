"""Steering while a model generates: h_l + c·v_l at block l (persona vectors, arXiv 2507.21509, Sec. 3.2 and code).

Used to choose layers and to see what a vector does; training is steered with `intervention`.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import hidden_size, site_module

Positions = Literal["all", "prompt", "response"]


def steer_generation(
    model: nn.Module, layer: int, vector: Tensor, coefficient: float, positions: Positions = "response"
) -> contextlib.AbstractContextManager[None]:
    """Within it, `coefficient`·`vector` [hidden] is added to what block `layer` (a layer key, 1 … N-1) puts out.

    positions: "all" tokens; those of the "prompt", which is what goes through the model at once; or of the
        "response": the last position of every pass, so the answer's tokens and the prompt's last one, which predicts
        the first of them. Prompts must be padded on the left, as `bulwark.models.generation` does.
    A negative coefficient suppresses. Contexts may be nested, for several layers.

    Raises ConfigurationError for a layer that cannot be steered, BulwarkError for a vector of another size.
    """
    if tuple(vector.shape) != (hidden_size(model),):
        raise BulwarkError(f"The vector has shape {list(vector.shape)}, the model needs [{hidden_size(model)}].")

    def mask(hidden: Tensor) -> Tensor:
        rows, tokens = hidden.shape[:2]
        steered = torch.zeros(rows, tokens, device=hidden.device)
        if positions == "response":
            steered[:, -1] = 1.0
        elif positions == "all" or tokens > 1:
            steered[:] = 1.0
        return steered

    module = site_module(model, layer, "block")
    return hooks.add({layer: module}, {layer: vector.detach().float()}, lambda _, __: coefficient, mask)
