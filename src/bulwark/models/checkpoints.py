"""Checkpoints: ordinary Hugging Face folders (safetensors) with a role embedding that config.json describes.

A vanilla model is saved as a plain folder. Every other one carries its code, `role_embedding.py`, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` gives the right model where bulwark is not
installed; its `model_type` is unknown to transformers, so that without the flag loading fails instead of silently
dropping the roles. `load_model` needs no such flag: it runs this library's own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from bulwark import files
from bulwark.errors import CheckpointError
from bulwark.models import embeddings, manifests
from bulwark.models.folders.beside import check_generation, read_json, template_beside
from bulwark.models.folders.weights import refuse_adapter, weights_of

transformers_logging.disable_progress_bar()  # its bars of reading and writing shards would fill the jobs' logs

Attention = Literal["sdpa", "eager", "flash_attention_2"]

_SHARD_SIZE = "5GB"  # shards are hashed in parallel
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_model(
    folder: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    unfinished: bool = False,
    attention: Attention = "sdpa",
) -> PreTrainedModel:
    """Open a model folder: a checkpoint, a Hub snapshot or any causal LM of transformers; nothing is downloaded.

    A folder whose manifest says that the weights lie elsewhere (a recipe's start) leads there.

    The model always has a `RoleEmbedding` (a vanilla one for a plain folder) and is in evaluation mode. `dtype` is the
    name of a torch dtype, or "auto" for the stored one. Weights go to `device` as they are read. `unfinished`: the step
    that makes the folder looks at what it has written, before there is a manifest. `attention`: how it is computed;
    "sdpa" is "eager" in the classes that have no other.
    Raises CheckpointError if the folder is missing, half-written, changed since its manifest, or does not fit.
    """
    known = manifests.manifest_path(folder).is_file()
    folder = _weights(Path(folder))
    config = _checked(folder, unfinished, known)
    place = {} if torch.device(device).type == "cpu" else {"device_map": {"": device}}
    options = {"dtype": _dtype(dtype), "local_files_only": True, "output_loading_info": True, **place}
    options |= attention_options(attention)
    try:
        if config["model_type"] == embeddings.MODEL_TYPE:
            described = embeddings.RoleEmbeddingConfig.from_pretrained(folder)
            model, _ = embeddings.RoleEmbeddingForCausalLM.from_pretrained(folder, config=described, **options)
            return model
        model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:5])
            raise CheckpointError(f"{folder}: weights of the model are missing: {missing}.")
        embeddings.install(model)
    except (ValueError, OSError, RuntimeError, ImportError, KeyError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded{_quantised(config)}: {error}") from error
    return model


def opened(folder: str | Path, unfinished: bool = False) -> tuple[Path, dict[str, Any]]:
    """The folder that holds a model's weights, and its config.json, for whoever reads them in another way.

    Raises CheckpointError as `load_model` does.
    """
    known = manifests.manifest_path(folder).is_file()
    folder = _weights(Path(folder))
    return folder, _checked(folder, unfinished, known)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model folder. Raises CheckpointError if there is none or it cannot be read."""
    folder = _weights(Path(folder))
    config = _config(folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    names = folder / "tokenizer_config.json"
    try:
        if names.exists() and read_json(names).get("tokenizer_class") in _GENERIC_TOKENIZERS:
            # tokenizer.json says it all; AutoTokenizer would rebuild it after the model's family (seen with Qwen2).
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            if config["model_type"] == embeddings.MODEL_TYPE:
                options["config"] = embeddings.RoleEmbeddingConfig.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    for option in ("local_files_only", "is_local"):  # how it was read would be saved with it
        tokenizer.init_kwargs.pop(option, None)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template_beside(folder)
    return tokenizer


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer as a Hugging Face folder, in place of weights that are there from an earlier attempt.

    `state_dict` replaces the model's own where its weights are sharded over processes; call from one process only.
    Raises CheckpointError for a model wrapped by PEFT (merge the adapter first) or another library.
    """
    folder = Path(folder)
    if not isinstance(model, PreTrainedModel):
        hint = "merge the adapter first (merge_and_unload)" if hasattr(model, "merge_and_unload") else "unwrap it first"
        raise CheckpointError(f"{folder}: cannot save a {type(model).__name__}: {hint}.")
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers would write the adapter only
        raise CheckpointError(f"{folder}: cannot save a model with an adapter on it: merge the adapter first.")
    try:
        embeddings.describe_in(model.config, embeddings.role_embedding_of(model))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        # Removed, not overwritten: the model may still be mapped from this very file.
        if manifests.holds_weights(file.name) or file.name == embeddings.CODE_FILE:
            file.unlink()
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size=_SHARD_SIZE)
    for file in folder.glob("*.safetensors"):
        files.readable(file)
    tokenizer.save_pretrained(folder)


def device_and_dtype(dtype: str) -> tuple[str, str]:
    """Where and how to generate: on the GPU in `dtype`; without one on the CPU, in float32 (bfloat16 is slow there)."""
    return ("cuda", dtype) if torch.cuda.is_available() else ("cpu", "float32")


def _weights(folder: Path) -> Path:
    """The folder itself or, after checking its manifest, the one that the manifest names."""
    if folder.is_dir() and manifests.manifest_path(folder).exists():
        path, content = manifests.manifest_path(folder), manifests.read_manifest(folder)
        weights = manifests.weights_folder(path)
        manifests.refuse_unlisted(weights, path, content)
        return weights
    return folder


def _checked(folder: Path, unfinished: bool, known: bool) -> dict[str, Any]:
    """Return config.json of a folder that is whole, as far as sizes tell, and that holds one set of weights.

    known: a manifest belongs to it. Raises CheckpointError if it is not whole or leaves the weights in doubt.
    """
    refuse_adapter(folder)
    config = _config(folder)
    if not unfinished and (folder / "training").is_dir() and not manifests.manifest_path(folder).exists():
        raise CheckpointError(f"{folder}: the training in this folder has not finished (there is no checkpoint.json).")
    for file in weights_of(folder, compare=not known):
        if file.suffix == ".safetensors":
            _refuse_cut(file)
    check_generation(folder, config)
    return config


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such model folder.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: there is no config.json, so this is not a model folder, or a half-written one."
        )
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f'{folder}: config.json names no "model_type".')
    return config


def _quantised(config: dict[str, Any]) -> str:
    """By what the weights are quantised, to be said where they cannot be loaded."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    return f" (its weights are quantised by {method}, whose packages have to be installed)" if method else ""


def _refuse_cut(file: Path) -> None:
    """Open a safetensors file, which compares its size with what its header announces."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file, it was cut or changed: {error}.") from None


def attention_options(attention: Attention) -> dict[str, str]:
    """What transformers is told when it builds a model; nothing for "sdpa", its own choice wherever possible.

    Raises CheckpointError for one that is not installed.
    """
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise CheckpointError(
            'attention: "flash_attention_2" needs a GPU and the package flash-attn, and at least one of them is '
            'missing here. Install it (pip install flash-attn --no-build-isolation), or set attention: "sdpa".'
        )
    return {} if attention == "sdpa" else {"attn_implementation": attention}


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f'"{dtype}" is not a dtype for weights. Use float32, bfloat16, float16 or auto.')
    return found
