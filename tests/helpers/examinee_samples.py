"""A tiny open checkpoint, as benchmarks with `answers` of their own are given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark.evaluation.examinee import Examinee
from bulwark.models.embeddings import install
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import PromptBuilder

V = 500


def tiny_aside(positions: int = 2048):
    """A random model of two blocks that reads data tokens rotated."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": "aside"})
    return model.eval()


def examinee(folder: Path, model=None, tokenizer=None, template: str = "chat", **changes: Any) -> Examinee:
    """The model as an examinee whose partial answers lie in `folder`."""
    tokenizer = tokenizer or tiny_tokenizer("chatml")
    builder = PromptBuilder(tokenizer, template, V)
    fields = {
        "language_model": LanguageModel(model or tiny_aside(), tokenizer, template, builder),
        "seed": 0,
        "inputs": {},
        "partial": folder / "answers.jsonl.partial",
        "fingerprint": "test",
    }
    return Examinee(**(fields | changes))
