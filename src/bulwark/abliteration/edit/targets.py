"""Which modules of a model are edited: those of attention and MLP that write into the residual stream.

Per block the attention's output projection and the MLP's down-projection. Where a block has experts, the target is the
mixture's own output (docs/abliteration.md, "Edits"), so that fused, shared and quantised experts need no code of their
own; HERETIC skips them silently. The router, embeddings and the output embedding are no targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bulwark.abliteration.settings import Component
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import PROJECTIONS, blocks_of, first_part, hidden_size

_SITES: dict[Component, str] = {"attention": "o_proj", "mlp": "down_proj"}
_MIXTURES = ("mlp", "block_sparse_moe", "feed_forward", "moe")
_BESIDE_MIXTURES = ("shared_mlp",)
# Norms between a sublayer and the residual stream (Gemma 2 and 3, OLMo 2); elsewhere "post_attention_layernorm" stands
# after attention and before the MLP, so both of a pair have to be there.
_NORMS_AFTER: list[dict[Component, str]] = [
    {"attention": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},  # GLM-4, whose MLP has one before it too
    {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    {"attention": "post_attention_layernorm", "mlp": "post_mlp_layernorm"},  # AFMoE
]


@dataclass(frozen=True)
class Target:
    """One module whose output is edited.

    layer: of its block, from 0. path: its name in the model. width: of the residual stream. mixture: a block of
    experts, of which only the output is known. gain: of a norm between this output and the residual stream, [hidden],
    or None.
    """

    layer: int
    component: Component
    path: str
    module: nn.Module
    width: int
    mixture: bool = False
    gain: Tensor | None = None

    def seen(self, direction: Tensor) -> Tensor:
        """The direction [..., hidden] as it lies before the norm: x·(gain ⊙ v) = 0 makes (gain ⊙ x)·v = 0."""
        if self.gain is None:
            return direction
        scaled = direction * self.gain.to(direction)
        return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    @property
    def bias(self) -> Tensor | None:
        bias = None if self.mixture else getattr(self.module, "bias", None)
        return bias() if callable(bias) and not isinstance(bias, Tensor) else bias  # a method of quantised modules


def targets_of(
    model: nn.Module, components: Sequence[Component] = ("attention", "mlp"), through_norms: bool = True
) -> list[Target]:
    """The targets, block by block. through_norms: account for norms after a sublayer (HERETIC does not).

    Raises BulwarkError for a block in which a component is not found, and for a module of another width.
    """
    blocks, width = blocks_of(model), hidden_size(model)
    prefix = next(name for name, part in model.named_modules() if part is blocks)
    targets = []
    for layer, block in enumerate(blocks):
        pairs = [{name: getattr(block, norm, None) for name, norm in pair.items()} for pair in _NORMS_AFTER]
        after = next((pair for pair in pairs if through_norms and None not in pair.values()), None)
        for component in components:
            paths = _paths(block, component)
            if not paths:
                raise BulwarkError(
                    f"Block {layer} ({type(block).__name__}) has no {component} output that is known here; looked for "
                    f"{', '.join(PROJECTIONS[_SITES[component]])}. Leave {component} out of edit.components."
                )
            gain = None if after is None else _gain(after[component])
            for path, mixture in paths:
                module = block.get_submodule(path)
                target = Target(layer, component, f"{prefix}.{layer}.{path}", module, width, mixture, gain)
                if not mixture and (outputs := outputs_of(module)) != width:
                    raise BulwarkError(f"{target.path} puts out {outputs} numbers, not the {width} expected.")
                targets.append(target)
    return targets


def outputs_of(module: nn.Module) -> int:
    """The number of outputs of a linear module."""
    if hasattr(module, "out_features"):
        return module.out_features
    if hasattr(module, "nf"):  # transformers' Conv1D
        return module.nf
    if not isinstance(getattr(module, "weight", None), Tensor):
        raise BulwarkError(f"{type(module).__name__} is no linear module that is known here, so it cannot be edited.")
    return module.weight.shape[0]


@torch.inference_mode()
def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear module, [outputs, inputs] in float32, whatever it is stored as.

    Conv1D (GPT-2) stores it transposed. Of a quantised module it is what the module does to the unit vectors, which is
    exact for quantised weights.
    """
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2
    if plain and not hasattr(weight, "quant_state"):
        return (weight.T if hasattr(module, "nf") else weight).detach().float()
    options = {"device": device_of(module), "dtype": getattr(module, "compute_dtype", None) or torch.float32}
    inputs = module.in_features
    columns = module(torch.eye(inputs, **options)) - module(torch.zeros(1, inputs, **options))
    return columns.T.float()


def device_of(module: nn.Module) -> torch.device:
    """Where the module's weights are; the CPU if it has none."""
    return next((part.device for part in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _paths(block: nn.Module, component: Component) -> list[tuple[str, bool]]:
    """(path in the block, whether it is a mixture of experts)."""
    if component == "mlp":
        parts = dict(block.named_modules(remove_duplicate=False))
        mixtures = [name for name in _MIXTURES if hasattr(parts.get(name), "experts")]
        if mixtures:
            return [(name, True) for name in (*mixtures, *_BESIDE_MIXTURES) if name in parts]
    name = first_part(block, PROJECTIONS[_SITES[component]])
    return [] if name is None else [(name, False)]


@torch.inference_mode()
def _gain(norm: nn.Module) -> Tensor:
    """What a norm multiplies by. An RMS norm gives it to a vector of ones; some families store it less 1."""
    weight = norm.weight.detach()
    return weight.float() if isinstance(norm, nn.LayerNorm) else norm(torch.ones_like(weight)).float()
