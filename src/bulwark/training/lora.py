"""Low-rank adapters around a model (Hu et al. 2021), by way of peft.

The parameters of a method (the vectors of ISE, a learned rotation, a learned shift) are no matrices of the model: they
are trained whole, beside the adapters. The rows of the embedding stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of
from bulwark.models.embeddings import RoleEmbedding
from bulwark.training.settings import LoraSettings

# Matrices that some families (Phi-3 and 4, GLM, GPT-NeoX, Falcon) hold as one, and the parts by which others name them.
_JOINED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

log = logging.getLogger(__name__)


def attach_lora(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """Freeze `model`, put trainable adapters on its linear modules, and leave the parameters of its method trainable.

    Where a model holds several matrices as one (`qkv_proj` for `q_proj`, `k_proj` and `v_proj`), the name of a part
    stands for the whole, on which there is one adapter then; the log says so.
    Raises BulwarkError naming modules that the model does not have, that are not linear, or that share their weight
    with another module, which merging would change too; and for more blocks than it has.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    if not isinstance(targets, str):
        targets = _as_they_are_held(model, targets)
        _refuse_unsuitable(model, targets)
    if settings.blocks is not None and settings.blocks > (there := len(blocks_of(model))):
        raise BulwarkError(f"lora.blocks is {settings.blocks}, but the model has {there} decoder blocks.")
    methods = [parameter for parameter in _method_parameters(model) if parameter.requires_grad]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=None if settings.blocks is None else list(range(settings.blocks)),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    for parameter in methods:
        parameter.requires_grad_(True)
    return adapted


def _as_they_are_held(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The targets, with the joined matrix of the model in the place of parts that it does not hold by themselves."""
    ends = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    held: dict[str, list[str]] = {}
    for target in targets:
        whole = next((name for name, parts in _JOINED.items() if target in parts and name in ends), target)
        held.setdefault(target if target in ends else whole, []).append(target)
    for whole, parts in held.items():
        if parts != [whole]:
            log.warning(
                "lora.target_modules: the model holds %s as one matrix, %s; its adapter, named by %s, is on all of it.",
                *(" and ".join(_JOINED[whole]), whole, " and ".join(parts)),
            )
    return list(held)


def _method_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What a role embedding has beside the rows that it shares with the plain embedding."""
    embeddings = [module for module in model.modules() if isinstance(module, RoleEmbedding)]
    return [parameter for module in embeddings for name, parameter in module.named_parameters() if name != "weight"]


def _refuse_unsuitable(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise BulwarkError unless every target is the end of the names of linear modules with weights of their own."""
    modules = dict(model.named_modules())
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in modules.items() if _is_linear(module)})
    instead = f"Adapters go on linear modules; this model has {', '.join(linear)}."
    holders: dict[int, list[str]] = {}
    for name, module in modules.items():
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            holders.setdefault(id(weight), []).append(name)
    for target in targets:
        matched = {name: module for name, module in modules.items() if name == target or name.endswith(f".{target}")}
        if not matched:
            raise BulwarkError(f"lora.target_modules: the model has no {target}. {instead}")
        for name, module in matched.items():
            if not _is_linear(module):
                raise BulwarkError(
                    f"lora.target_modules: {target} is no linear module ({name} is a {type(module).__name__}). "
                    f"{instead} To train it, leave lora out."
                )
            others = [other for other in holders.get(id(module.weight), []) if other != name]
            if others:
                raise BulwarkError(
                    f"lora.target_modules: {target} shares its weight with {', '.join(others)}, the input embedding of "
                    "a model with tied embeddings, say. Merging an adapter of the one would change the other too. "
                    f"Leave {target} out of lora.target_modules, or train without lora."
                )


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # the linear module of GPT-2

    return isinstance(module, nn.Linear | Conv1D)
