"""A tiny model that answers prompts, and what watches it: for the tests of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny_tokenizers import SENTENCES, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from bulwark.data.records import Turn
from bulwark.models.answers import Answer
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.generation import generate
from bulwark.prompts.builder import Prompt, PromptBuilder

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GREEDY = Decoding(max_new_tokens=12)
SAMPLED = Decoding(max_new_tokens=12, do_sample=True, temperature=0.9, top_p=0.8)


def sample_model(config_class=LlamaConfig):
    torch.manual_seed(0)
    heads = {} if config_class is GPTNeoXConfig else {"num_key_value_heads": 2, "head_dim": 8}
    config = config_class(vocab_size=500, max_position_embeddings=512, initializer_range=0.3, **SIZE, **heads)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": "aside"})
    return model.eval()


def sample_builder() -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer("chatml"), "chat", 500)


def sample_prompts(builder: PromptBuilder) -> list[tuple[str, Prompt]]:
    """Thirteen of different lengths."""
    words = SENTENCES[3].split()
    turns = [
        (
            Turn(role="instruction", text="Name " + words[i]),
            Turn(role="data", text=" ".join(words[: 1 + (i * 5) % 13])),
        )
        for i in range(13)
    ]
    return [(f"r{i}", builder.prompt(pair)) for i, pair in enumerate(turns)]


def answers(
    decoding: Decoding = GREEDY, *, model: Any, builder: PromptBuilder, prompts: Sequence, **options: Any
) -> list[Answer]:
    options = {"stop_ids": builder.stop_ids, "pad_id": builder.pad_id, **options}
    return generate(model, prompts, decoding, tokenizer=builder.tokenizer, **options)


class Counted:
    """Notes the size of every prefill and the rows of every pass; runs out of memory above `most` rows."""

    def __init__(self, model, most=10**6, error=None):
        self._model, self.most, self.rows, self.widths, self.passes = model, most, [], [], []
        self._error = error or torch.OutOfMemoryError("CUDA out of memory.")

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, input_ids, **options):
        self.passes.append(len(input_ids))
        if input_ids.shape[1] > 1:
            self.rows.append(len(input_ids))
            self.widths.append(input_ids.shape[1])
        if len(input_ids) > self.most:
            raise self._error
        return self._model(input_ids=input_ids, **options)
