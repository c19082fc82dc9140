"""Booster's gradient: derived by hand for two parameters, in float64 for a language model, at every ZeRO stage."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from examinee_samples import tiny_aside
from immunisation_samples import (
    HARMFUL,
    course_of,
    first_examples,
    gradient_of,
    mean_loss,
    objective_of,
    weights_of,
)
from torch import nn
from training_samples import run, settings

from bulwark.training import engine as engines
from bulwark.training.objectives import Objective
from bulwark.unlearning.immunisation import attenuation, pieces

RATE = 0.01


def answer_of(course, prompt):
    return course.builder.tokenizer.decode([label for label in prompt.labels if label >= 0], skip_special_tokens=True)


class Two(nn.Module):
    """Two numbers and what is asked about them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))

    def forward(self, of):
        return of(self.a, self.b).sum()


def asking(of):
    batch = SimpleNamespace(of=of)
    batch.to = lambda device: batch
    return batch


@pytest.mark.parametrize("stage", [0, 2])
def test_the_gradient_of_two_parameters_is_the_one_derived_by_hand(stage, monkeypatch, tmp_path):
    """f = a·b², h = a² + a·b at (1, 2): ∇f = (4, 4), ∇h = (2a + b, a) = (4, 1), ‖∇h‖ = √17.

    A harmful step of length α = √17/10 ends at (0.6, 1.9), where ∇h = (3.1, 0.6); so g = ∇f + λ·(0.9, 0.4).
    """
    monkeypatch.setattr(attenuation, "next_token_loss", lambda model, batch: model(batch.of))
    course = course_of(tmp_path)
    objective = objective_of("booster", course, attack="x", alpha=17**0.5 / 10, lambda_=2.0)
    objective.loss = lambda model, batch: model(batch.of)
    objective.harmful = SimpleNamespace(of_step={0: [asking(lambda a, b: a * a + a * b)]}.get)
    model = Two()
    engine = engines.build(model, settings(optimizer="sgd", schedule="constant", zero_stage=stage), 1)
    objective.before_step(engine, 0, 1)
    assert [float(part) for part in pieces.copied(pieces.masters(engine))] == [1.0, 2.0]
    assert [float(weight.detach()) for weight in model.parameters()] == [1.0, 2.0]
    engine.set_gradient_accumulation_boundary(True)
    objective.backward(engine, asking(lambda a, b: a * b * b))
    objective.after_backward(engine, 0, 1)
    found = [float(engines.gradient_of(parameter)) for parameter in model.parameters()]
    assert found == pytest.approx([4 + 2 * 0.9, 4 + 2 * 0.4], abs=1e-5)
    assert objective._curves.latest("x") == pytest.approx(
        {"x/alignment": 4.0, "x/harmful": 3.0, "x/after_a_harmful_step": 0.6**2 + 0.6 * 1.9}, abs=1e-5
    )


def trained(folder, model=None, **training):
    course = course_of(folder, model, **({"learning_rate": RATE, "max_steps": 1} | training))
    objective = objective_of("booster", course, attack="x", attack_batch_size=4)
    return course, objective, run(course, objective, folder)


def test_a_language_models_step_goes_along_boosters_gradient(tmp_path):
    model = tiny_aside()
    before, wide = weights_of(model), copy.deepcopy(model).double()
    course, objective, result = trained(tmp_path, model)
    harmful = objective.examples.prompts
    answers = [answer_of(course, prompt) for prompt in harmful]
    assert answers == [answer for _, answer, _ in HARMFUL]
    names = dict(wide.named_parameters())

    def gradient(loss):
        return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))

    align = gradient(mean_loss(wide, first_examples(course)))
    here = gradient(mean_loss(wide, harmful))
    norm = torch.stack([part.square().sum() for part in here.values()]).sum().sqrt()
    with torch.no_grad():
        for name, weight in names.items():
            weight.sub_(0.1 * here[name] / norm)
    there = gradient(mean_loss(wide, harmful))
    found = gradient_of(before, result.model, RATE)
    for name in names:
        expected = align[name] + 5.0 * (here[name] - there[name])
        torch.testing.assert_close(found[name].double(), expected, atol=5e-4, rtol=5e-3)
    assert any(float((there[name] - here[name]).abs().max()) > 0.02 for name in names)
    assert objective.report()["booster"]["harmful_examples"] == 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_ends_alike(stage, tmp_path):
    _, _, plain = trained(tmp_path / "0", max_steps=2)
    _, _, sharded = trained(tmp_path / "x", max_steps=2, zero_stage=stage)
    torch.testing.assert_close(sharded.model.state_dict(), plain.model.state_dict(), atol=1e-5, rtol=0)


def test_without_weight_nothing_but_plain_training_is_left(tmp_path):
    course = course_of(tmp_path / "x", learning_rate=RATE, max_steps=2)
    without = run(course, objective_of("booster", course, attack="x", lambda_=0.0), tmp_path / "x")
    course = course_of(tmp_path / "y", learning_rate=RATE, max_steps=2)
    plain = run(course, Objective(), tmp_path / "y")
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(without.model.state_dict()[name], weight)
