"""What fits where: parameters as published, bytes that autograd keeps as it keeps them, and the table in the docs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from bench.memory import kept_by
from bulwark.jobs import memory
from bulwark.jobs.memory import CARDS, GB, PURPOSES, SHAPES, Load, Shape

DOCS = Path(__file__).parents[3] / "docs" / "memory.md"
TINY = Shape("tiny", layers=3, hidden=64, inner=160, heads=4, shared=2, size=16, vocabulary=50)


@pytest.mark.parametrize(
    ("size", "published"),
    [("7B", 7.62), ("8B", 8.03), ("13B", 13.02), ("32B", 32.76), ("70B", 70.55)],  # the models' cards, billions
)
def test_parameters_are_as_published(size, published):
    assert SHAPES[size].parameters / 1e9 == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("change", [{}, {"inner": 320}, {"heads": 8}, {"shared": 4}, {"hidden": 128}, {"layers": 5}])
def test_what_autograd_keeps_is_what_is_computed(checkpointing, change, attention):
    shape, tokens = replace(TINY, **change), 96
    model = LlamaModel(LlamaConfig(**shape.llama, attn_implementation=attention)).to(torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.ones(1, tokens, dtype=torch.long)
    results = []
    found = kept_by(model, lambda: results.append(model(input_ids=ids, use_cache=False).last_hidden_state))
    assert results[0].requires_grad
    pairs = Load(attention=attention, length=tokens).pairs(tokens)
    assert memory.kept(shape, tokens, checkpointing, pairs) == pytest.approx(found, rel=0.03)


def test_weights_gradients_and_state_are_counted_by_hand():
    """A model of a billion parameters, hardly any of which are embeddings, with next to no tokens."""
    shape = Shape("round", layers=1, hidden=1000, inner=332_000, heads=1, shared=1, size=1000, vocabulary=1)
    assert shape.parameters == pytest.approx(1e9, rel=1e-5)
    load = Load(tokens=1, rank=1)
    one = memory.bytes_of(shape, "full training", 1, load)
    assert one / GB == pytest.approx(2 + 2 + 4 + 12 + 1, abs=0.01)  # weight, gradient twice, state, a bucket
    eight = memory.bytes_of(shape, "full training", 8, load)
    assert eight / GB == pytest.approx(18 / 8 + 2 + 2, abs=0.01)  # a shard, gathered weights, gradients being reduced
    small = replace(shape, inner=32_000)  # 10⁸ parameters, fewer than the buckets hold: each as large as the model
    assert memory.bytes_of(small, "full training", 1, load) / GB == pytest.approx(0.1 * (20 + 2), abs=0.005)
    assert memory.bytes_of(small, "full training", 8, load) / GB == pytest.approx(0.1 * (18 / 8 + 2 + 4), abs=0.005)
    adapters = 2 * (1000 + 1000) + 2 * (1000 + 1000) + 3 * (1000 + 332_000)
    assert shape.adapters(1) == adapters
    lora = memory.bytes_of(shape, "LoRA training", 1, load)
    assert lora == pytest.approx(2 * shape.parameters + 22 * adapters, rel=0.01)
    packed = memory.bytes_of(shape, "4-bit search", 1, Load(tokens=1, cached=1))
    assert (packed - GB) / 1e9 == pytest.approx(4.127 / 8, abs=0.005)  # QLoRA, Sec. 3: 0.127 bits beside the four


def test_the_cache_of_a_token_is_its_keys_and_values_in_half_precision():
    """As transformers keeps it; of Llama-3.1-8B 128 KiB."""
    with torch.no_grad():
        cache = (
            LlamaModel(LlamaConfig(**TINY.llama)).to(torch.bfloat16)(torch.ones(1, 7, dtype=torch.long)).past_key_values
        )
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert 7 * TINY.cached == held
    assert SHAPES["8B"].cached == 128 * 2**10


def test_more_memory_never_takes_more_gpus_and_less_is_held_on_more():
    for shape in SHAPES.values():
        for purpose in PURPOSES:
            counts = [memory.gpus_for(shape, purpose, card) or 10**6 for card in CARDS]
            assert counts == sorted(counts, reverse=True)
            held = [memory.bytes_of(shape, purpose, gpus) for gpus in (2, 4, 8, 16)]
            assert held == sorted(held, reverse=True)


def test_a_model_that_answers_lies_block_by_block_with_its_embeddings_on_the_first_gpu():
    """Ten blocks of 100 MB and 400 MB of embeddings on two GPUs: 3 blocks and 4 are 700 MB, 7 blocks as much."""
    shape = Shape("round", layers=10, hidden=1000, inner=1, heads=1, shared=1, size=12_499.25, vocabulary=100_000)
    assert shape.linear == pytest.approx(10 * 5e7, rel=1e-3)
    load = Load(tokens=1, cached=0)
    beside = memory.bytes_of(shape, "answering", 2, load) - 0.7 * GB
    assert beside == pytest.approx(memory.bytes_of(shape, "answering", 1, load) - 1.4 * GB, abs=0.01 * GB)
    assert memory.bytes_of(shape, "answering", 8, load) - beside == pytest.approx(0.4 * GB, abs=0.01 * GB)
    assert memory.gpus_for(SHAPES["70B"], "answering", 24) is None, "no model is spread over several nodes"
    eager = replace(load, tokens=2, cached=2, attention="eager", length=2**20)
    more = memory.bytes_of(shape, "answering", 1, eager) - memory.bytes_of(
        shape, "answering", 1, replace(eager, attention="sdpa")
    )
    assert more == pytest.approx(6 * 2 * 2**20, rel=1e-3)
    assert memory.gpus_of_weights(141.2 * GB, 80 * GB) == 2


def test_a_count_is_the_fewest_that_suffice():
    shape = SHAPES["32B"]
    gpus = memory.gpus_for(shape, "full training", 80)
    fits = memory.USABLE * 80 * GB
    assert memory.bytes_of(shape, "full training", gpus) <= fits < memory.bytes_of(shape, "full training", gpus - 8)
    assert memory.gpus_for(shape, "full training", 24, most=8) is None


def test_the_table_in_the_docs_is_the_one_that_is_printed(capsys):
    memory.main()
    printed = capsys.readouterr().out.strip()
    assert printed in DOCS.read_text(encoding="utf-8")
