"""Lisa: whose data a step learns, where the weights are held, and that a resumed run goes on alike."""

from __future__ import annotations

import copy

import pytest
import torch
from examinee_samples import tiny_aside
from immunisation_samples import course_of, first_examples, mean_loss, objective_of
from stopped_samples import Interrupted, stopping
from training_samples import run

RATE = 0.05
PHASES = {"alignment": "x", "alignment_steps": 1, "user_steps": 2, "proximal_after": 0.0}


def trained(folder, model=None, given=None, at=None, **training):
    course = course_of(folder, model, **({"learning_rate": RATE, "max_steps": 3} | training))
    course.job.inputs["alignment"] = course.job.inputs["harmful"]
    objective = objective_of("lisa", course, **(PHASES | (given or {})))
    return course, objective, run(course, stopping(objective, at), folder)


def test_phases_take_turns(tmp_path):
    _, objective, _ = trained(tmp_path, max_steps=7)
    assert [objective.phase(step) for step in range(7)] == ["alignment", "user", "user"] * 2 + ["alignment"]
    points = objective.report()["lisa"]["losses"]["points"]
    assert [point[1] > 0 for point in points] == [True, False, False] * 2 + [True]
    assert [point[2] > 0 for point in points] == [False, True, True] * 2 + [False]
    drifts = [point[3] for point in points]
    assert [drift > 0 for drift in drifts] == [False, False, True, False, False, True, False]


def test_a_step_follows_the_loss_and_is_drawn_back_to_the_switch(tmp_path):
    """The third step is the user's second: its weights are held at those with which the first of them began."""
    rho = 0.7
    model = tiny_aside()
    wide = copy.deepcopy(model).double()
    weights = list(wide.parameters())
    course, objective, result = trained(tmp_path, model, {"rho": rho, "proximal_after": 0.7})  # from 2.1 steps on
    anchor = None
    for step in range(3):
        if step in (0, 1):
            anchor = [weight.detach().clone() for weight in weights]
        prompts = (
            first_examples(course, step)
            if step
            else [objective.examples.prompts[n] for n in objective.alignment.examples_of(step)]
        )
        gradients = torch.autograd.grad(mean_loss(wide, prompts), weights)
        with torch.no_grad():
            for weight, gradient, held in zip(weights, gradients, anchor, strict=True):
                weight.sub_(RATE * (gradient + rho * (weight - held)))
    moved = sum((weight - held).norm().item() for weight, held in zip(weights, anchor, strict=True))
    assert moved > 0.01
    for weight, expected in zip(result.model.parameters(), weights, strict=True):
        torch.testing.assert_close(weight.detach().double(), expected.detach(), atol=2e-5, rtol=1e-3)


def test_weights_are_held_only_after_a_while(tmp_path):
    _, _, late = trained(tmp_path / "late", None, {"proximal_after": 1.0, "rho": 5.0})
    _, _, free = trained(tmp_path / "free", None, {"rho": 0.0})
    _, _, held = trained(tmp_path / "held", None, {"rho": 5.0})
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(late.model.state_dict()[name], free.model.state_dict()[name])
    assert not torch.allclose(held.model.state_dict()[name], free.model.state_dict()[name], atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_ends_alike(stage, tmp_path):
    _, _, plain = trained(tmp_path / "0")
    _, _, sharded = trained(tmp_path / "x", zero_stage=stage)
    torch.testing.assert_close(sharded.model.state_dict(), plain.model.state_dict(), atol=1e-5, rtol=0)


def test_a_resumed_training_ends_bit_for_bit_alike(tmp_path):
    _, _, expected = trained(tmp_path / "whole", max_steps=6, save_every=1)
    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", max_steps=6, save_every=1, at=5)  # between two steps of a phase
    _, _, found = trained(tmp_path / "parts", max_steps=6, save_every=1)
    assert found.report.resumed_at == [5]
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight)
