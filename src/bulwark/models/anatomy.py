"""Where the decoder blocks of a model are, whatever wraps it: a DeepSpeed engine, PEFT, a multimodal class.

Layer keys: the output of block l (from 1) is the residual stream h_l, from which row l of a trait vector is computed.
Keys go from 1 to N-1. Row 0 are the embeddings, which are no block's output; nothing but the final norm follows the
last block, so N is refused as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models import hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

Site = Literal["block", "o_proj", "down_proj"]

PROJECTIONS = {  # the modules that write into the residual stream, by the names that families give them
    "o_proj": (
        "self_attn.o_proj",
        "attention.dense",
        "attn.c_proj",
        "self_attn.out_proj",
        "self_attn.dense",
        "linear_attn.out_proj",
        "conv.out_proj",
    ),
    "down_proj": (
        "mlp.down_proj",
        "mlp.dense_4h_to_h",
        "mlp.c_proj",
        "mlp.fc2",
        "feed_forward.w2",
        "feed_forward.down_proj",
    ),
}

FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")  # beside the list of blocks


def positions_of(model) -> int | None:
    """The most tokens that a model reads, prompt and answer together; None where its configuration says none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_layer(layer: int, layers: int, where: str = "layers") -> None:
    """Raise ConfigurationError unless `layer` is a layer key of a model with `layers` blocks."""
    if not 1 <= layer <= layers - 1:
        reason = {0: "0 is the embeddings", layers: "the last block's output only passes the final norm"}.get(layer)
        raise ConfigurationError(
            f"{where}: {layer} is not a layer key of a model with {layers} blocks"
            f"{f' ({reason})' if reason else ''}. Take one from 1 to {layers - 1}; key l is the output of block l."
        )


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal LM, first to last. Raises BulwarkError if there is no list of them."""
    from torch import nn

    config = getattr(_unwrapped(model), "config", None)
    wanted = config.get_text_config().num_hidden_layers if config is not None else None
    lists = [
        (name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == wanted
    ]
    # A multimodal model has the blocks of its vision tower as well.
    text = [(name, part) for name, part in lists if "vision" not in name and "visual" not in name]
    if not text:
        raise BulwarkError(f"{type(_unwrapped(model)).__name__}: no list of its {wanted} decoder blocks was found.")
    return min(text, key=lambda pair: pair[0].count("."))[1]


def final_norm_of(model: nn.Module) -> nn.Module:
    """The norm between the last block and the output embedding. Raises BulwarkError if it is not where it is known."""
    blocks = blocks_of(model)
    around = next(part for part in model.modules() if any(child is blocks for child in part.children()))
    name = first_part(around, FINAL_NORMS)
    if name is None:
        raise BulwarkError(f"{type(around).__name__} has no final norm; looked for {', '.join(FINAL_NORMS)}.")
    return around.get_submodule(name)


def site_module(model: nn.Module, layer: int, site: Site) -> nn.Module:
    """The module whose output an intervention at layer key `layer` changes.

    Raises ConfigurationError for a layer that cannot be steered, BulwarkError if the block has no such part.
    """
    blocks = blocks_of(model)
    check_layer(layer, len(blocks))
    block = blocks[layer - 1]
    if site == "block":
        return block
    name = first_part(block, PROJECTIONS[site])
    if name is None:
        raise BulwarkError(f"{type(block).__name__} has no {site}; looked for {', '.join(PROJECTIONS[site])}.")
    return block.get_submodule(name)


def first_part(module: nn.Module, names: Iterable[str]) -> str | None:
    """The first of `names` (dotted paths) that is a part of the module."""
    parts = dict(module.named_modules(remove_duplicate=False))
    return next((name for name in names if name in parts), None)


@contextlib.contextmanager
def watching(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While active, `see(l, h_l)` is called for l = 0 … N, in this order, with h_l [batch, seq, hidden].

    h_0 is what the first block is given, h_l what block l puts out: the last one before the final norm.
    """
    blocks = blocks_of(model)
    with hooks.capture_inputs({0: blocks[0]}, see), hooks.capture(dict(enumerate(blocks, start=1)), see):
        yield


def hidden_size(model: nn.Module) -> int:
    """The width H of the residual stream."""
    return _unwrapped(model).config.get_text_config().hidden_size


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside an engine."""
    return getattr(model, "module", model)
