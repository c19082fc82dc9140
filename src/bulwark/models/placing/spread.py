"""A model whose blocks lie on several GPUs of a node, or whose linear modules are packed in 4 bits.

transformers reads every weight straight onto its device (`device_map`), so that no more than a shard is held twice.
What accelerate's hooks would do is done by hooks of the blocks here: accelerate replaces `forward`, also that of the
output embedding, and then neither a role embedding can be installed nor logits be read in chunks. A pass moves the
hidden states, the mask and the positions from GPU to GPU; keys and values stay with their block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import send_to_device
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from bulwark.errors import BulwarkError, CheckpointError
from bulwark.models import checkpoints, embeddings, hooks
from bulwark.models.anatomy import blocks_of
from bulwark.models.placing.loading import FOUR_BIT, GB, Loading, places

_CACHES = ["past_key_values", "past_key_value", "cache_params"]  # which keep what they hold where it was made


def load(
    folder: str | Path,
    dtype: str | torch.dtype,
    device: str | torch.device,
    loading: Loading,
    unfinished: bool = False,
) -> PreTrainedModel:
    """Open a model folder as `checkpoints.load_model` does, held as `loading` says.

    device: of a model that is not spread; "cuda" with several GPUs is spread over the first of them, and the CPU holds
    a model whole whatever `loading` says. Raises as `load_model` does, and BulwarkError if there are fewer GPUs.
    """
    kind = torch.device(device).type
    if loading.attention == "flash_attention_2" and dtype in ("float32", torch.float32):
        raise CheckpointError(f'{folder}: attention: "flash_attention_2" computes in half precision only, not float32.')
    alone = kind == "cpu" or loading.gpus == 1
    if alone and not loading.four_bit:
        return checkpoints.load_model(folder, dtype, device, unfinished, attention=loading.attention)
    devices = [torch.device(device)] if alone else _devices(kind, loading.gpus)
    return spread(folder, dtype, devices, loading, unfinished)


def spread(
    folder: str | Path,
    dtype: str | torch.dtype,
    devices: Sequence[torch.device],
    loading: Loading,
    unfinished: bool = False,
) -> PreTrainedModel:
    """The model in `folder` with its blocks over `devices`, and all else on the first of them.

    Raises CheckpointError where 4 bits are asked for and bitsandbytes is missing, or the weights are quantised already.
    """
    folder, config = checkpoints.opened(folder, unfinished)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    options |= checkpoints.attention_options(loading.attention)
    if loading.four_bit:
        options["quantization_config"] = _packing(folder, config, dtype)
    try:
        described = _described(folder, config)
        options["device_map"] = _device_map(described, config, devices, loading, dtype)
        if config["model_type"] == embeddings.MODEL_TYPE:
            reader: Any = embeddings.RoleEmbeddingForCausalLM
            model, info = reader.from_pretrained(folder, config=described, **options)
        else:
            model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:5])
            raise CheckpointError(f"{folder}: weights of the model are missing: {missing}.")
        remove_hook_from_module(model, recurse=True)
        embeddings.install(model)
    except (ValueError, OSError, RuntimeError, ImportError, KeyError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded over {len(devices)} devices: {error}") from error
    pass_between(model)
    return model


def pass_between(model: PreTrainedModel) -> None:
    """Have a pass go from device to device: each block is given what it works on where its weights are.

    What the last block puts out goes back to the first device, where everything else is.
    """
    blocks, first = blocks_of(model), model.device
    for block in blocks:
        device = next(block.parameters()).device
        if device != first:
            block.register_forward_pre_hook(partial(_onto, device), with_kwargs=True)
    around = next(part for part in model.modules() if any(child is blocks for child in part.children()))
    for part in around.children():  # the final norm above all, also where the last blocks are left out of a pass
        if part is not blocks and any(True for _ in part.parameters()):
            part.register_forward_pre_hook(partial(_onto, first), with_kwargs=True)
    blocks[-1].register_forward_hook(partial(_back, first))


def _onto(device: torch.device, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    moved = send_to_device((args, kwargs), device, skip_keys=_CACHES)
    return moved[0], moved[1]


def _back(device: torch.device, _: nn.Module, __: tuple, output: Any) -> Any:
    return hooks.with_hidden(output, hooks.hidden_of(output).to(device))


def _packing(folder: Path, config: dict[str, Any], dtype: str | torch.dtype) -> BitsAndBytesConfig:
    """NF4 with scales that are quantised again (QLoRA, arXiv 2305.14314, Sec. 3), of all but the output embedding."""
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise CheckpointError(
            f"{folder}: the weights are quantised by {method} already, so that an edit could not be written into what "
            "they were made from. Attack that; quantised: nf4 packs it for the search."
        )
    if not is_bitsandbytes_available():
        raise CheckpointError(
            "quantised: nf4 needs the package bitsandbytes, which is missing here. Install it "
            "(pip install -e '.[four_bit]'), or leave quantised out."
        )
    like = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=like,
    )


def _devices(kind: str, gpus: int) -> list[torch.device]:
    seen = torch.accelerator.device_count()
    if seen < gpus:
        raise BulwarkError(
            f"The model is to be spread over {gpus} GPUs (resources.generate.gpu in its file under config/models), but "
            f"this job sees {seen}. Ask for as many (CUDA_VISIBLE_DEVICES, or gpus_as in the profile)."
        )
    return [torch.device(kind, number) for number in range(gpus)]


def _described(folder: Path, config: dict[str, Any]) -> Any:
    if config["model_type"] == embeddings.MODEL_TYPE:
        return embeddings.RoleEmbeddingConfig.from_pretrained(folder)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _device_map(
    described: Any, config: dict[str, Any], devices: Sequence[torch.device], loading: Loading, dtype: str | torch.dtype
) -> dict[str, str]:
    """{path of a part: its device} for all weights and buffers of the model that `described` describes."""
    if len(devices) == 1:
        return {"": str(devices[0])}
    like = {} if dtype == "auto" else {"dtype": dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)}
    with torch.device("meta"):
        if config["model_type"] == embeddings.MODEL_TYPE:
            empty = embeddings.RoleEmbeddingForCausalLM._from_config(described, **like)
        else:
            empty = AutoModelForCausalLM.from_config(described, trust_remote_code=False, **like)
    blocks = blocks_of(empty)
    prefix = next(name for name, part in empty.named_modules() if part is blocks)
    sizes = [_bytes(block, loading.four_bit) for block in blocks]
    outside = _bytes(empty, False) - sum(_bytes(block, False) for block in blocks)
    room = None if loading.gpu_gb is None else [size * GB for size in loading.gpu_gb]
    of_block = places(sizes, outside, len(devices), room)
    named = {f"{prefix}.{number}": str(devices[place]) for number, place in enumerate(of_block)}
    for name, part in empty.named_modules():
        inside = name == prefix or name.startswith(f"{prefix}.")
        own = (*part._parameters.values(), *part._buffers.values())
        if not inside and any(held is not None for held in own):
            named[name] = str(devices[0])
    return named


def _bytes(part: nn.Module, packed: bool) -> float:
    """Of its weights, a tied one once. packed: its linear modules in 4 bits."""
    linear = {id(m.weight): m.weight.numel() for m in part.modules() if isinstance(m, nn.Linear)} if packed else {}
    held = {id(weight): weight for weight in part.parameters()}
    return sum(
        FOUR_BIT * linear[key] if key in linear else weight.numel() * weight.element_size()
        for key, weight in held.items()
    )
