"""Observers: when the loop calls them, what survives a kill, and how steps hand them over."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from tiny_causal_models import tiny_model
from torch import nn
from training_samples import PAD, examples, trained

from bulwark.models.embeddings import install
from bulwark.training.batches import StepBatches
from bulwark.training.objectives import Objective, target_logits
from bulwark.training.observers import Observer, batch_in_pass


class Interrupted(Exception):
    pass


class Plain(Objective):
    """Next-token training that writes down when it is called."""

    def __init__(self, calls: list[str], at: int | None = None) -> None:
        self.calls, self.at = calls, at

    def start(self, engine, total):
        self.calls.append(f"objective starts, {total} steps")

    def before_step(self, engine, step, total):
        if step == self.at:
            raise Interrupted
        self.calls.append(f"objective before {step}")

    def backward(self, engine, batch):
        self.calls.append("backward")
        return super().backward(engine, batch)

    def after_step(self, engine, step, total):
        self.calls.append(f"objective after {step}")


class Noting(Observer):
    """Writes down when it is called, and counts the tokens of all steps."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls, self.tokens = name, calls, 0

    def start(self, engine, total):
        self.calls.append(f"{self.name} starts, {total} steps")

    def before_step(self, engine, step, total):
        self.calls.append(f"{self.name} before {step}")

    @contextlib.contextmanager
    def during(self, batch):
        self.calls.append(f"{self.name}(")
        yield
        self.calls.append(f"){self.name}")
        self.tokens += batch.target_positions.numel()

    def after_step(self, engine, step, total):
        self.calls.append(f"{self.name} after {step}")

    def finish(self, model, step, total):
        self.calls.append(f"{self.name} finishes at {step} of {total}")

    def state_dict(self):
        return {"tokens": self.tokens}

    def load_state_dict(self, state):
        self.tokens = state["tokens"]


def model_of() -> nn.Module:
    model = tiny_model("llama")
    install(model, {"method": "vanilla"})
    return model


def run(folder: Path, calls: list[str], at: int | None = None, **changes):
    observers = [Noting("a", calls), Noting("b", calls)]
    result = trained(model_of(), folder, objective=Plain(calls, at), observers=observers, **changes)
    return result, observers


def test_observers_are_called_after_the_objective_and_surround_each_micro_batch(tmp_path):
    calls: list[str] = []
    run(tmp_path, calls, max_steps=1)
    assert calls == [
        *("objective starts, 1 steps", "a starts, 1 steps", "b starts, 1 steps"),
        *("objective before 0", "a before 0", "b before 0"),
        *("a(", "b(", "backward", ")b", ")a"),
        *("a(", "b(", "backward", ")b", ")a"),
        *("objective after 0", "a after 0", "b after 0"),
        *("a finishes at 1 of 1", "b finishes at 1 of 1"),
    ]


def test_observing_changes_nothing_and_each_resumes_with_its_own_state(tmp_path):
    whole, (first, second) = run(tmp_path / "whole", [])
    assert first.tokens == second.tokens == whole.report.target_tokens
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", [], at=3, save_every=2)
    again, resumed = run(tmp_path / "cut", [], save_every=2)
    assert again.report.resumed_at == [2]
    assert [observer.tokens for observer in resumed] == [first.tokens, second.tokens]
    plain = trained(model_of(), tmp_path / "plain").model.state_dict()
    for result in (whole, again):
        assert all(torch.equal(weight, plain[name]) for name, weight in result.model.state_dict().items())


def test_a_state_is_not_resumed_with_other_observers(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, [], at=3, save_every=2)
    assert trained(model_of(), tmp_path, objective=Plain([]), save_every=2).report.resumed_at == []


def test_a_hook_in_the_model_can_ask_which_batch_goes_through_it():
    [batch] = StepBatches(examples(4), batch_size=4, micro_batch_size=4, pad_id=PAD).of_step(0)
    model, seen = model_of(), []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(batch_in_pass()))
    target_logits(model, batch)
    model(input_ids=batch.input_ids)
    assert [one is batch for one in seen] == [True, False]
    assert seen[1] is None
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        target_logits(model, batch, {})
    assert batch_in_pass() is None
