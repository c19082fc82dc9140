"""A tiny random model of every class that transformers has for causal language modelling, as far as one builds here.

The sizes are put into each class's own configuration by the names that families give them; windows and chunks are
shorter than the rows of the tests, and a hybrid has a layer of every kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

V = 61
TYPES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_MOST_PARAMETERS = 4_000_000
_SIZES: list[tuple[int, str]] = [
    (
        32,
        "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim hidden_dim lru_width embedding_dim emb_dim",
    ),
    (32, "attention_hidden_size hidden_size_per_layer_input"),
    (
        48,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size d_ff dim_ff mlp_hidden_size",
    ),
    (48, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    (48, "moe_shared_expert_intermediate_size intermediate_size_mlp block_ff_dim dense_intermediate_size"),
    (2, "num_hidden_layers n_layer n_layers decoder_layers encoder_layers num_layers"),
    (4, "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_heads mamba_n_heads"),
    (4, "linear_num_value_heads linear_num_key_heads linear_num_heads index_n_heads"),
    (
        2,
        "num_key_value_heads num_experts_per_tok moe_topk moe_k n_group topk_group num_experts_per_token top_k_experts",
    ),
    (8, "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim d_kv attention_head_dim linear_key_head_dim"),
    (8, "linear_value_head_dim linear_head_dim qk_head_dim global_head_dim kv_channels index_head_dim rotary_dim"),
    (16, "kv_lora_rank q_lora_rank mamba_d_state state_size ssm_state_size"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts"),
    (1, "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace"),
    (V, "vocab_size decoder_vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size"),
    (128, "max_position_embeddings n_positions max_seq_len max_target_positions max_sequence_length n_ctx"),
    (4, "sliding_window window_size local_attention attention_window_size attention_chunk_size"),
    (24, "index_topk"),  # more than an example has, fewer than a row has
    (0, "pad_token_id"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
]
_HYBRID = {"layer_types": ["mamba", "hybrid"], "attention_hidden_size": 64, "attention_head_dim": 16}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"num_expert_group": 1, "topk_group": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": _HYBRID
    | {"num_mem_blocks": 1, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1}
    | {"use_shared_attention_adapter": False, "use_mem_rope": False, "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def every_model(model_type: str) -> nn.Module:
    """The same model at every call, in float32 and evaluation mode; its weights are large, so that a leak shows.

    Raises whatever the class raises if it does not build in so small a size.
    """
    config = _config(model_type)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > _MOST_PARAMETERS:
        raise MemoryError(f"{model_type}: {size} parameters are left")
    torch.manual_seed(0)
    model = kind(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def _config(model_type: str) -> PreTrainedConfig:
    return _tiny(CONFIG_MAPPING[model_type], _OWN.get(model_type, {}))


def _tiny(kind: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    present = vars(kind())
    numbers = {
        name for name, value in present.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    special = {"pad_token_id", "bos_token_id", "eos_token_id"} & set(present)
    chosen: dict[str, Any] = {
        name: size for size, names in _SIZES for name in names.split() if name in numbers or name in special
    }
    for name, value in present.items():
        if isinstance(value, PreTrainedConfig):
            chosen[name] = _tiny(type(value), _OWN.get(value.model_type, {}))
    if "kv_lora_rank" in present and "num_key_value_heads" in chosen:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]  # latent attention has no grouped heads
    if "is_decoder" in present:
        chosen["is_decoder"] = True
    chosen |= own
    if present.get("layer_types"):
        kinds = list(dict.fromkeys(chosen.get("layer_types") or present["layer_types"]))
        every = {"layer_types": kinds if len(kinds) > 1 else kinds * 2}
        every["num_hidden_layers"] = len(every["layer_types"])
        try:
            return kind(**chosen | every)
        except Exception:  # some derive the kinds of their layers and refuse a list
            pass
    return kind(**chosen)
