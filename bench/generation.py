"""Batched generation against one `generate` call per prompt, and against batches in the order of the records."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from bench.timing import Ratio, ratio
from bench.training import examples_of_like_shape, small_model
from bulwark.models import generation
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt

PROMPTS, NEW_TOKENS, BUDGET = 256, 16, 4096


class _Ids:
    """A tokenizer as far as generation needs one: it writes ids as numbers."""

    def decode(self, ids, **options) -> str:
        return " ".join(str(token) for token in ids)


def run() -> Iterator[Ratio]:
    """Time without / time with our batching, over prompts of very different lengths; the answers are the same."""
    logging.disable(logging.INFO)
    model = small_model().eval()
    install(model, {"method": "aside"})
    prompts = _prompts()
    decoding = Decoding(max_new_tokens=NEW_TOKENS)
    options = {"tokenizer": _Ids(), "stop_ids": [1], "pad_id": 0}

    def ours() -> list[str]:
        return [a.response for a in generation.generate(model, prompts, decoding, token_budget=BUDGET, **options)]

    def one_by_one() -> list[str]:
        return [_plain(model, [prompt]) for _, prompt in prompts]

    def unsorted() -> list[str]:
        rows = BUDGET // (max(len(prompt.ids) for _, prompt in prompts) + NEW_TOKENS)
        return [_plain(model, [p for _, p in prompts[start : start + rows]]) for start in range(0, len(prompts), rows)]

    yield ratio("one by one / ours", one_by_one, ours, "> 1", rounds=3)
    yield ratio("batches in given order, as many tokens each / ours", unsorted, ours, "> 1", rounds=5)


def _prompts() -> list[tuple[str, Prompt]]:
    """Prompts of which a few are four times as long as the rest, as in benchmarks with documents in the data."""
    made = []
    for number, example in enumerate(examples_of_like_shape(PROMPTS)):
        times = 4 if number % 16 == 0 else 1
        made.append((str(number), Prompt(example.ids[:-8] * times, None, example.roles[:-8] * times, [], "", False)))
    return made


@torch.no_grad()
def _plain(model, prompts: list[Prompt]) -> torch.Tensor:
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), 0)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=[1], pad_token_id=0
    )
