"""The miniature's model: a small Llama, described as plain keyword arguments of `transformers.LlamaConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bulwark.miniature.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Keyword arguments for `LlamaConfig`, with its `model_type`."""
    return {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        "max_position_embeddings": settings.max_position_embeddings,
        "initializer_range": settings.initializer_range,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": settings.tied,
    }
