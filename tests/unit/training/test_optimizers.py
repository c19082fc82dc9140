"""Optimizers and schedules against updates and formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny_causal_models import tiny_model
from training_samples import PAD, examples, settings, trained
from transformers import get_scheduler

from bulwark.models.embeddings import install
from bulwark.training.batches import training_batches
from bulwark.training.schedules import factor_of


def model_of(dtype=torch.float32):
    model = tiny_model("llama")
    install(model, {"method": "vanilla"})
    return model.to(dtype)


def by_hand(update, steps=5, rate=0.05, decay=0.0):
    """Weights after `steps` steps of `update(gradient, memory) -> direction`, in float64; decay only on matrices."""
    model = model_of(torch.float64)
    batches = training_batches(
        examples(14), settings(micro_batch_size=4), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False
    )
    memory = {name: {} for name, _ in model.named_parameters()}
    for step in range(steps):
        [batch] = batches.of_step(step)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                gradient = weight.grad + (decay * weight if weight.dim() > 1 else 0)
                weight -= rate * update(gradient, memory[name])
    return model


def nesterov(gradient, memory):
    """v ← 0.9 v + g; the step is g + 0.9 v."""
    memory["v"] = 0.9 * memory.get("v", 0) + gradient
    return gradient + 0.9 * memory["v"]


def momentum(gradient, memory):
    memory["v"] = 0.9 * memory.get("v", 0) + gradient
    return memory["v"]


def adadelta(gradient, memory):
    """Zeiler 2012, algorithm 1, with ρ = 0.9 and ε = 1e-6."""
    memory["g"] = 0.9 * memory.get("g", 0) + 0.1 * gradient**2
    moved = memory.get("x", torch.zeros_like(gradient))
    step = (moved + 1e-6) ** 0.5 / (memory["g"] + 1e-6) ** 0.5 * gradient
    memory["x"] = 0.9 * moved + 0.1 * step**2
    return step


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("changes", "update", "rate", "decay"),
    [
        ({"optimizer": "sgd", "momentum": 0.9, "nesterov": True}, nesterov, 0.05, 0.0),
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}, momentum, 0.05, 0.1),
        ({"optimizer": "sgd"}, lambda gradient, memory: gradient, 0.05, 0.0),
        ({"optimizer": "adadelta"}, adadelta, 1.0, 0.0),
        ({"optimizer": "adadelta", "weight_decay": 0.1}, adadelta, 1.0, 0.1),
    ],
    ids=["nesterov", "momentum", "sgd", "adadelta", "adadelta decays"],
)
def test_weights_move_as_by_hand(changes, update, rate, decay, stage, tmp_path):
    result = trained(
        model_of(),
        tmp_path,
        max_steps=5,
        learning_rate=rate,
        max_grad_norm=0.0,
        schedule="constant",
        zero_stage=stage,
        **changes,
    )
    expected, start = by_hand(update, rate=rate, decay=decay), model_of(torch.float64)
    for ours, theirs, before in zip(result.model.parameters(), expected.parameters(), start.parameters(), strict=True):
        moved = (theirs - before).abs().max()
        assert moved > 1e-4
        assert (ours.double() - theirs).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_bitwise_those_of_transformers(schedule, warmup):
    chosen = settings(schedule=schedule, warmup_steps=warmup, max_steps=17, learning_rate=3e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, warmup, 17)
    factor = factor_of(chosen, 17)
    for step in range(17):
        assert theirs.get_last_lr() == [3e-4 * factor(step)]
        optimizer.step()
        theirs.step()


def rates(total, steps, **changes):
    factor = factor_of(settings(max_steps=total, learning_rate=2e-5, min_learning_rate=5e-6, **changes), total)
    return [2e-5 * factor(step) for step in steps]


def test_a_cosine_ends_at_its_floor():
    ours = rates(500, [0, 50, 100, 300, 400, 500], schedule="cosine", warmup_steps=100)
    at_400 = 5e-6 + 7.5e-6 * (1 + math.cos(math.pi * 0.75))
    assert ours == pytest.approx([0, 1e-5, 2e-5, 1.25e-5, at_400, 5e-6], rel=1e-12)


def test_restarts_begin_anew_after_every_cycle():
    at = [0, 15, 30, 80, 129, 130, 180, 230]
    last = 5e-6 + 7.5e-6 * (1 + math.cos(math.pi * 0.99))
    ours = rates(500, at, schedule="cosine_restarts", warmup_steps=30, cycle_steps=100)
    assert ours == pytest.approx([0, 1e-5, 2e-5, 1.25e-5, last, 2e-5, 1.25e-5, 2e-5], rel=1e-12)


def test_restarts_lengthen_and_decay():
    at = [0, 50, 100, 200, 300, 500, 700]  # cycles of 100, 200 and 400 steps, of at most 2e-5, 1e-5 and 5e-6
    ours = rates(900, at, schedule="cosine_restarts", cycle_steps=100, cycle_mul=2.0, cycle_decay=0.5)
    assert ours == pytest.approx([2e-5, 1.25e-5, 1e-5, 7.5e-6, 5e-6, 5e-6, 5e-6], rel=1e-12)


def test_schedule_free_adamw_has_no_schedule():
    factor = factor_of(settings(optimizer="schedulefree_adamw", schedule="constant", warmup_steps=3), 10)
    assert [factor(step) for step in range(4)] == [1.0] * 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"momentum": 0.9}, 'optimizer "sgd"'),
        ({"optimizer": "adadelta", "nesterov": True}, "adadelta has none"),
        ({"optimizer": "sgd", "nesterov": True}, "set momentum as well"),
        ({"min_learning_rate": 1e-3, "schedule": "linear"}, "where a cosine ends"),
        ({"min_learning_rate": 1.0}, r"1 is above the learning_rate 0\.01"),
        ({"schedule": "cosine_restarts"}, "needs cycle_steps"),
        ({"cycle_steps": 100}, 'belong to the schedule "cosine_restarts"'),
        ({"cycle_decay": 0.5}, 'belong to the schedule "cosine_restarts"'),
    ],
    ids=str,
)
def test_what_is_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        settings(**changes)
