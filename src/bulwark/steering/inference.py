"""Steering while a model generates: h_l + c·v_l at block l (persona vectors, arXiv 2507.21509, Sec. 3.2 and code).

Used to choose layers and to see what a vector does; training is steered with `intervention`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models.anatomy import hidden_size, site_module

Positions = Literal["all", "prompt", "response"]


@contextlib.contextmanager
def steer_generation(
    model: nn.Module, layer: int, vector: Tensor, coefficient: float, positions: Positions = "response"
) -> Iterator[None]:
    """Within it, `coefficient`·`vector` [hidden] is added to what block `layer` (a layer key, 1 … N-1) puts out.

    positions: "all" tokens; those of the "prompt", which is what goes through the model at once; or of the
        "response": the last position of every pass, so the answer's tokens and the prompt's last one, which predicts
        the first of them. Prompts must be padded on the left, as `bulwark.models.generation` does.
    A negative coefficient suppresses. Contexts may be nested, for several layers.

    Raises ConfigurationError for a layer that cannot be steered, BulwarkError for a vector of another size.
    """
    if tuple(vector.shape) != (hidden_size(model),):
        raise BulwarkError(f"The vector has shape {list(vector.shape)}, the model needs [{hidden_size(model)}].")
    change = coefficient * vector.detach().float()

    def hook(_: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        hidden = output[0] if isinstance(output, tuple) else output
        added = change.to(hidden.device, hidden.dtype)
        if positions == "response":
            hidden = hidden.clone()
            hidden[:, -1] += added
        elif positions == "all" or hidden.shape[1] > 1:
            hidden = hidden + added
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = site_module(model, layer, "block").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
