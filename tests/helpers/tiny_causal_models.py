"""Random causal LMs of every family that is tested, with a few thousand parameters each."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

V, HIDDEN = 29, 16
CONFIGS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma3": Gemma3TextConfig,
    "gpt_neox": GPTNeoXConfig,
}
FAMILIES = list(CONFIGS)


def tiny_model(
    family: str = "llama", tied: bool = False, dtype: torch.dtype = torch.float32, layers: int = 2
) -> PreTrainedModel:
    """The same model at every call; weights large enough that a rotation of the input changes the output clearly."""
    torch.manual_seed(0)
    config = CONFIGS[family](
        vocab_size=V,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def tokens(rows: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain ids (no special ones) and roles, both [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length)
    return torch.randint(3, V, shape, generator=generator), torch.randint(0, 3, shape, generator=generator)
