"""A training step with roles against one without, and the training loop against a plain torch loop."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing import Ratio, ratio
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.training import loop
from bulwark.training.settings import TrainingSettings

VOCABULARY, BATCH, STEPS = 400, 32, 60


def run() -> Iterator[Ratio]:
    """aside / vanilla of one optimizer step; plain torch loop / our loop over the same examples and steps."""
    logging.disable(logging.INFO)
    examples = examples_of_like_shape(BATCH * STEPS)

    def trained(method: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = small_model()
            install(model, {"method": method})
            loop.train(
                model, examples, [], _settings(), seed=0, state=Path(folder) / "training", fingerprint={}, pad_id=0
            )

    yield ratio("aside / vanilla: the same training", lambda: trained("aside"), lambda: trained("vanilla"), "≤ 1.03")
    yield ratio(
        "plain torch loop / our loop: the same training (our tokens/s over its)",
        lambda: _plain(examples),
        lambda: trained("vanilla"),
        "≥ 0.95",
    )


def _settings() -> TrainingSettings:
    return TrainingSettings(
        epochs=1, batch_size=BATCH, micro_batch_size=BATCH, learning_rate=1e-3, evaluate_every=None, save_minutes=None
    )


def small_model() -> LlamaForCausalLM:
    """About the miniature's size."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    )


def examples_of_like_shape(count: int) -> list[Prompt]:
    """Prompts of 20 to 60 tokens, half of them data, with a response of 8."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        length = rng.randint(20, 60)
        plain = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        roles = [1 if i < length // 2 else 2 if i < length - 8 else 0 for i in range(length)]
        ids = [token + VOCABULARY * role for token, role in zip(plain, roles, strict=True)]
        labels = [token if role == 0 else -100 for token, role in zip(plain, roles, strict=True)]
        made.append(Prompt(ids=ids, labels=labels, roles=roles, spans=[], text="", truncated=False))
    return made


def _plain(examples: list[Prompt]) -> None:
    """The textbook loop: batches of like length, padding, the model's own loss, AdamW, clipping, cosine schedule."""
    model = small_model()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    ordered = sorted(examples, key=lambda example: len(example.ids))
    batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
    random.Random(0).shuffle(batches)
    for batch in batches:
        width = max(len(example.ids) for example in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(batch):
            length = len(example.ids)
            ids[row, :length] = torch.tensor(example.ids) % VOCABULARY
            mask[row, :length] = 1
            labels[row, :length] = torch.tensor(example.labels)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
