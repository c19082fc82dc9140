"""Whether the examples of a packed row stay apart in a model; asked of the very model that is to be trained.

Packed examples are told apart by their position ids, from which attention makes its blocks. Not every class of model
does so: some make their mask without looking at positions, and what is carried along a row (the state of Mamba or of
linear attention, a convolution) knows no bounds at all. No list of classes says which (it depends on the attention's
implementation and on the kinds of layers that a configuration asks for), but four passes over a short row do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's name for a linear module

from bulwark.errors import BulwarkError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_LENGTHS = (17, 23)
"""Of the two examples of the row; longer than the convolutions of any known class."""
_ROUNDING = 10.0
"""Where examples stay apart, nothing at all arrives; only a mixture's experts round differently when other tokens are
beside. How much that is, shows where nothing can arrive, in the first example when the second one is another."""
_LEAST = 1e-5
"""Of the change in the first example: less than this does not count as arriving."""
_MOVED = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_MOVED = 0.1
"""How far the logits of an example may be from those of the same example alone, in standard deviations."""
_CARRIED = ("mamba", "recurrent", "rwkv", "lstm", "delta", "lightning", "linearattention", "conv")
_ADVICE = "Set training.packing to false: a row then holds one example."


@torch.no_grad()
def check_packing(engine: DeepSpeedEngine | nn.Module, vocabulary: int) -> None:
    """Raise BulwarkError naming the model's class unless the examples of a packed row have no part in one another.

    engine: of the model, or the model itself; left in the mode it is in. vocabulary: rows of its input embedding. All
    ranks must call it. No random number is drawn.
    """
    model = getattr(engine, "module", engine)
    device = next(model.parameters()).device
    first, second = _LENGTHS
    draw = np.random.default_rng(0)
    ids, others = (draw.integers(0, vocabulary, first + second) for _ in range(2))
    positions = np.concatenate([np.arange(first), np.arange(second)])

    def logits(ids: np.ndarray, positions: np.ndarray) -> Tensor:
        inputs = {"input_ids": ids, "position_ids": positions}
        row = {name: torch.from_numpy(value).unsqueeze(0).to(device) for name, value in inputs.items()}
        return engine(**row, use_cache=False).logits[0].float()

    training = model.training
    engine.eval()
    try:
        row = logits(ids, positions)
        other_first = logits(np.concatenate([others[:first], ids[first:]]), positions)
        other_second = logits(np.concatenate([ids[:first], others[first:]]), positions)
        alone = logits(ids[first:], positions[first:])
    except TypeError as error:
        raise BulwarkError(f"training.packing: {_name(model)} takes no position ids ({error}). {_ADVICE}") from None
    finally:
        engine.train(training)
    arrived = _largest(row[first:] - other_first[first:])
    rounding = _largest(row[:first] - other_second[:first])
    changed = _largest(row[:first] - other_first[:first])
    moved = _largest(row[first:] - alone) / max(float(alone.std()), 1e-30)
    if not arrived <= max(_ROUNDING * rounding, _LEAST * changed):
        raise BulwarkError(
            f"training.packing: {_name(model)} lets the examples of a packed row see one another: {_reason(model)}. "
            f"{_ADVICE}"
        )
    if not moved <= _MOVED.get(model.dtype, _COARSE_MOVED):
        raise BulwarkError(
            f"training.packing: {_name(model)} reads a packed example otherwise than the same example alone: its "
            f"positions do not begin anew. {_ADVICE}"
        )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _name(model: nn.Module) -> str:
    """The class of the model, inside its adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__


def _reason(model: nn.Module) -> str:
    """What carries something along a row, as far as the names of its modules tell."""
    parts = (module for module in model.modules() if not isinstance(module, PreTrainedModel | Conv1D))
    kinds = dict.fromkeys(type(module).__name__ for module in parts)
    carrying = next((kind for word in _CARRIED for kind in kinds if word in kind.lower()), None)
    if carrying:
        return f"its {carrying} carries something along the whole row"
    attention = getattr(model.config, "_attn_implementation", None) or "its"
    return f"with {attention} attention it does not take position ids as the bounds of examples"
