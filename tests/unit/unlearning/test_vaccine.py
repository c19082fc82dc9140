"""Vaccine: the perturbation and the gradient under it against a calculation in float64; what T-Vaccine draws."""

from __future__ import annotations

import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from examinee_samples import tiny_aside
from immunisation_samples import course_of, first_examples, gradient_of, mean_loss, objective_of, weights_of
from training_samples import run

from bulwark.errors import ConfigurationError
from bulwark.unlearning.immunisation.perturbation import sites_of

RATE = 0.01
TARGETED = {"harmful": "x", "layers": 1, "redraw_every": 1, "measure_every": 2}


def trained(folder, model=None, given=None, **training):
    course = course_of(folder, model, **({"learning_rate": RATE, "max_steps": 1, "micro_batch_size": 4} | training))
    course.job.inputs["harmful"] = course.job.inputs["preference"]
    objective = objective_of("vaccine", course, **({"rho": 0.5} | (given or {})))
    return course, objective, run(course, objective, folder)


def sites_by_hand(model, site):
    layers = model.model.layers
    return [layer.self_attn if site == "attention" else layer for layer in layers]


def perturbed_gradient(model, prompts, site, rho, active=None):
    """Row by row: first the gradient at the sites of all prompts, then the gradient of the weights under ε."""
    sites = [part for n, part in enumerate(sites_by_hand(model, site), start=1) if active is None or n in active]
    count = sum(sum(label >= 0 for label in prompt.labels[1:]) for prompt in prompts)

    def losses(change):
        for prompt in prompts:
            seen = []

            def hook(module, args, output, seen=seen):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = change(prompt, len(seen), hidden)  # noqa: B023
                seen.append(hidden)
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handles = [part.register_forward_hook(hook) for part in sites]
            own = sum(label >= 0 for label in prompt.labels[1:])
            loss = mean_loss(model, [prompt]) * own / count
            for handle in handles:
                handle.remove()
            yield prompt, seen, loss

    kept = {
        id(prompt): torch.autograd.grad(loss, seen) for prompt, seen, loss in losses(lambda prompt, n, hidden: hidden)
    }
    norm = torch.stack([part.square().sum() for parts in kept.values() for part in parts]).sum().sqrt()
    total = sum(loss for *_, loss in losses(lambda prompt, n, hidden: hidden + rho * kept[id(prompt)][n] / norm))
    weights = dict(model.named_parameters())
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True)), float(norm)


@pytest.mark.parametrize("site", ["attention", "block"])
@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_a_step_goes_along_the_perturbed_gradient(site, micro_batch_size, tmp_path):
    model = tiny_aside()
    before, wide = weights_of(model), copy.deepcopy(model).double()
    course, objective, result = trained(tmp_path, model, {"site": site}, micro_batch_size=micro_batch_size)
    expected, norm = perturbed_gradient(wide, first_examples(course), site, 0.5)
    assert objective.norms == pytest.approx([norm], rel=1e-4)
    plain = dict(
        zip(
            expected, torch.autograd.grad(mean_loss(wide, first_examples(course)), list(wide.parameters())), strict=True
        )
    )
    found = gradient_of(before, result.model, RATE)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient, atol=5e-4, rtol=5e-3)
    assert max(float((plain[name] - expected[name]).abs().max()) for name in expected) > 0.01


@pytest.mark.parametrize("changes", [{"zero_stage": 1}, {"zero_stage": 3}, {"gradient_checkpointing": True}])
def test_however_it_is_carried_out_it_ends_alike(changes, tmp_path):
    _, _, plain = trained(tmp_path / "0", max_steps=2)
    _, _, other = trained(tmp_path / "x", max_steps=2, micro_batch_size=2, **changes)
    torch.testing.assert_close(other.model.state_dict(), plain.model.state_dict(), atol=1e-5, rtol=0)


def test_targeted_layers_alone_are_perturbed(tmp_path):
    model = tiny_aside()
    before, wide = weights_of(model), copy.deepcopy(model).double()
    course, objective, result = trained(tmp_path, model, {"targeted": TARGETED | {"batch_size": 4}})
    assert len(objective.active) == 1
    expected, _ = perturbed_gradient(wide, first_examples(course), "attention", 0.5, objective.active)
    found = gradient_of(before, result.model, RATE)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient, atol=5e-4, rtol=5e-3)


def test_layers_are_drawn_by_the_norm_of_the_harmful_gradient(tmp_path):
    model = tiny_aside()
    wide = copy.deepcopy(model).double()
    course, objective, _ = trained(tmp_path, model, {"targeted": TARGETED | {"batch_size": 4}})
    prompts = [course.preferences_from("harmful", "rejected").prompts[n] for n in objective.harmful.examples_of(0)]
    seen = []
    handles = [
        part.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        for part in sites_by_hand(wide, "attention")
    ]
    squares = [0.0, 0.0]
    count = sum(sum(label >= 0 for label in prompt.labels[1:]) for prompt in prompts)
    for prompt in prompts:
        seen.clear()
        own = sum(label >= 0 for label in prompt.labels[1:])
        for n, part in enumerate(torch.autograd.grad(mean_loss(wide, [prompt]) * own / count, seen)):
            squares[n] += float(part.square().sum())
    for handle in handles:
        handle.remove()
    norms = [square**0.5 for square in squares]
    assert objective.probabilities == pytest.approx([norm / sum(norms) for norm in norms], rel=1e-3)
    objective.probabilities = [0.9, 0.1]
    drawn = Counter()
    for step in range(1, 401, 2):
        objective._draw(None, step)
        drawn[objective.active[0]] += 1
    assert 160 < drawn[1] < 197


def test_layers_are_measured_now_and_then_on_other_harmful_examples(tmp_path):
    course = course_of(tmp_path, max_steps=5)
    course.job.inputs["harmful"] = course.job.inputs["preference"]
    objective = objective_of("vaccine", course, targeted=TARGETED | {"batch_size": 2})
    of_step, asked = objective.harmful.of_step, []
    objective.harmful = SimpleNamespace(of_step=lambda step: asked.append(step) or of_step(step))
    run(course, objective, tmp_path)
    assert asked == [0, 1, 2]  # at the optimizer steps 0, 2 and 4


def test_more_layers_than_there_are_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"targeted\.layers"):
        trained(tmp_path, None, {"targeted": TARGETED | {"layers": 3}})
    assert list(sites_of(tiny_aside(), "block")) == [1, 2]
