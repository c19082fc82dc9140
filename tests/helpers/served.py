"""Models behind a real address on this machine, for the tests of `bulwark serve`: a tiny random one, and one that says
what it is told to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark.models.embeddings import install
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import PromptBuilder
from bulwark.serving.server import in_background

V = 500
NAME = "tiny/aside/seed0"


def tiny(method: str = "aside", positions: int = 512) -> LanguageModel:
    """A random model of two blocks; the same weights for every method."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=positions, initializer_range=0.3, **size)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": method})
    tokenizer = tiny_tokenizer("chatml")
    return LanguageModel(model.eval(), tokenizer, "chat", PromptBuilder(tokenizer, "chat", V, positions))


class Scripted(torch.nn.Module):
    """Writes one text after the other, whatever it is asked; keeps the prompts of each batch, padding included."""

    def __init__(self, texts: Sequence[str], tokenizer, stop_id: int) -> None:
        super().__init__()
        self._scripts = [[*tokenizer.encode(text, add_special_tokens=False), stop_id] for text in texts]
        self._writing: list[int] = []
        self.prompts: list[list[int]] = []
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=True):
        if past_key_values is None:
            self.prompts += input_ids.tolist()
            self._writing = self._scripts.pop(0)
            past_key_values = -1
        logits = torch.zeros(len(input_ids), 1, V)
        logits[:, :, self._writing[past_key_values + 1]] = 1
        return SimpleNamespace(logits=logits, past_key_values=past_key_values + 1)


def scripted(*texts: str) -> LanguageModel:
    """A model that gives these answers, in this order."""
    tokenizer = tiny_tokenizer("chatml")
    builder = PromptBuilder(tokenizer, "chat", V)
    return LanguageModel(Scripted(texts, tokenizer, builder.stop_ids[0]), tokenizer, "chat", builder)


@contextmanager
def served(language_model: LanguageModel, name: str = NAME, new_tokens: int = 12, **options) -> Iterator[openai.OpenAI]:
    """A client of a server with the model."""
    with (
        in_background(language_model, name, new_tokens, **options) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def roles_of(ids: Sequence[int]) -> list[int]:
    """The role that each id carries: response 0, instruction 1, data 2."""
    return [number // V for number in ids]


def text_of(language_model: LanguageModel, ids: Sequence[int], role: int) -> str:
    """The text of the tokens of one role, special tokens as such."""
    return language_model.tokenizer.decode([number % V for number in ids if number // V == role])
