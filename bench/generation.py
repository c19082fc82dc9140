"""Batched generation against `generate` of transformers: per prompt, on sorted batches, and against rows that stay."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing import Ratio, ratio
from bench.training import VOCABULARY
from bulwark.models import generation
from bulwark.models.batching import padded
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt

PROMPTS, NEW_TOKENS, BUDGET = 256, 128, 2**14
STOPS = list(range(1, 13))  # so many that answers end everywhere between the first and the last token


class _Ids:
    """A tokenizer as far as generation needs one: it writes ids as numbers."""

    def batch_decode(self, rows, **options) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def run() -> Iterator[Ratio]:
    """Time without / time with what ours does; the answers are the same."""
    logging.disable(logging.INFO)
    model, prompts = _model(), _prompts()
    longest_first = sorted((prompt for _, prompt in prompts), key=lambda prompt: -len(prompt.ids))

    def ours() -> list[generation.Answer]:
        return generation.generate(
            model,
            prompts,
            Decoding(max_new_tokens=NEW_TOKENS),
            tokenizer=_Ids(),
            stop_ids=STOPS,
            pad_id=0,
            token_budget=BUDGET,
        )

    def staying() -> list[generation.Answer]:
        with mock.patch.object(generation, "COMPACT_AT", -1):
            return ours()

    def sorted_batches() -> list[str]:
        found, done = [], 0
        while done < PROMPTS:
            rows = BUDGET // (len(longest_first[done].ids) + NEW_TOKENS)
            found += _plain(model, longest_first[done : done + rows])
            done += rows
        return found

    def one_by_one() -> list[str]:
        return [text for prompt in longest_first for text in _plain(model, [prompt])]

    answers = ours()
    assert staying() == answers
    assert sorted(sorted_batches()) == sorted(answer.response for answer in answers)
    lengths = sorted(answer.tokens for answer in answers)
    where = f"answers of {lengths[0]} to {lengths[-1]} tokens, median {lengths[PROMPTS // 2]}"
    yield ratio(f"transformers' generate, sorted batches / ours ({where})", sorted_batches, ours, "> 1", rounds=5)
    yield ratio("finished rows stay / leave", staying, ours, "> 1", rounds=5)
    yield ratio("one by one / ours", one_by_one, ours, "> 1", rounds=1)


def _model() -> LlamaForCausalLM:
    """About the miniature's size, with weights so large that greedy answers seldom repeat themselves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    install(model, {"method": "vanilla"})
    return model


def _prompts() -> list[tuple[str, Prompt]]:
    rng = random.Random(0)
    made = [[rng.randrange(20, VOCABULARY) for _ in range(rng.randint(20, 240))] for _ in range(PROMPTS)]
    return [(str(number), Prompt(ids, None, [0] * len(ids), [], "", False)) for number, ids in enumerate(made)]


@torch.no_grad()
def _plain(model, prompts: list[Prompt]) -> list[str]:
    ids = padded([prompt.ids for prompt in prompts], 0, left=True)
    found = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=STOPS,
        pad_token_id=0,
    )
    rows = found[:, ids.shape[1] :].tolist()
    ends = [next((place for place, token in enumerate(row) if token in STOPS), None) for row in rows]
    return _Ids().batch_decode([row[:end] for row, end in zip(rows, ends, strict=True)])
