"""RMU and rerouting: their losses against each example by itself in float64, their weights, and what is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_causal_models import HIDDEN, tiny_model
from training_samples import run
from unlearning_samples import batch_of, course_of, forget_examples, hidden_of, objective_of, with_parent

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.training.lora import attach_lora

RMU = {"layer": 2, "blocks": [1, 2]}


def changed(model):
    """The same model with weights that are a little larger."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.2
    return model


def losses_of(objective, model, retain, forget):
    with torch.no_grad():
        return (
            objective.retain_loss(model, batch_of(retain)).item(),
            objective.forget_loss(model, batch_of(forget)).item(),
        )


def test_rmu_steers_the_one_set_and_holds_the_other(tmp_path):
    course = with_parent(course_of(tmp_path, tiny_model(layers=3), seed=5))
    objective = objective_of("rmu", course, coefficient=20.0, **RMU)
    model, start = changed(course.model), tiny_model(layers=3)
    u = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(5)).double()
    assert u.min() >= 0
    target = (20.0 * u / u.square().sum().sqrt()).numpy()
    away = np.concatenate([((hidden_of(model, p)[2].numpy() - target) ** 2).mean(axis=1) for p in forget_examples()])
    kept = np.concatenate(
        [((hidden_of(model, p)[2] - hidden_of(start, p)[2]).numpy() ** 2).mean(axis=1) for p in course.examples]
    )
    found = losses_of(objective, model, course.examples, forget_examples())
    assert found == pytest.approx((kept.mean(), away.mean()), rel=1e-5)


def test_rmu_trains_down_projections_of_its_blocks_only(tmp_path):
    course = with_parent(course_of(tmp_path, tiny_model(layers=4), learning_rate=0.01, max_steps=2))
    before = {name: weight.clone() for name, weight in course.model.state_dict().items()}
    objective = objective_of("rmu", course, layer=3, blocks=[1, 3])
    trained = run(course, objective, tmp_path).model.state_dict()
    different = [name for name, weight in trained.items() if not torch.equal(weight, before[name])]
    assert different == [f"model.layers.{block}.mlp.down_proj.weight" for block in (0, 2)]


def test_rmu_starts_with_nothing_to_keep(tmp_path):
    course = with_parent(course_of(tmp_path, tiny_model(layers=3)))
    objective = objective_of("rmu", course, **RMU)
    loss = objective.retain_loss(course.model, batch_of(course.examples))
    assert loss.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("given", "training", "told"),
    [
        ({"layer": 2, "blocks": [3]}, {}, "no part in its output"),
        ({"layer": 2, "blocks": [0, 1]}, {}, "count from 1"),
        ({"layer": 2, "blocks": [1]}, {"lora": {"rank": 2}}, r"training\.lora"),
        ({"layer": 3, "blocks": [1]}, {}, "not a layer key"),
    ],
)
def test_rmu_refuses_what_cannot_be(given, training, told, tmp_path):
    with pytest.raises(ConfigurationError, match=told):
        objective_of("rmu", with_parent(course_of(tmp_path, tiny_model(layers=3), **training)), **given)


def cosines(now, then):
    return torch.cosine_similarity(now, then, dim=-1)


@pytest.mark.parametrize(("step", "progress"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_rerouting_turns_from_the_one_loss_to_the_other(step, progress, tmp_path):
    course = with_parent(course_of(tmp_path, tiny_model(layers=3)))
    objective = objective_of("rerouting", course, layers=[1, 2], alpha=10.0, schedule_steps=4)
    objective.step = step
    model, start = changed(course.model), tiny_model(layers=3)
    away = [
        torch.stack(
            [cosines(hidden_of(model, p)[layer], hidden_of(start, p)[layer]).clamp(min=0) for layer in (1, 2)]
        ).mean(dim=0)
        for p in forget_examples()
    ]
    kept = [
        torch.stack([(a - b).norm(dim=-1) for a, b in zip(hidden_of(model, p), hidden_of(start, p), strict=True)]).mean(
            dim=0
        )
        for p in course.examples
    ]
    expected = (10 * progress * torch.cat(kept).mean().item(), 10 * (1 - progress) * torch.cat(away).mean().item())
    found = losses_of(objective, model, course.examples, forget_examples())
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rerouting_with_adapters_starts_aligned_and_unmoved(tmp_path):
    names = ("q_proj", "down_proj")
    course = with_parent(course_of(tmp_path, tiny_model(layers=3), lora={"rank": 2, "target_modules": names}))
    objective = objective_of("rerouting", course, layers=[1, 2], schedule_steps=4)
    model = attach_lora(course.model, course.training.lora)
    retain, forget = losses_of(objective, model, course.examples, forget_examples())
    assert retain == pytest.approx(0, abs=1e-5)
    assert forget == pytest.approx(10 * 0.75, rel=1e-5)


def test_adapters_can_be_on_the_first_blocks_only(tmp_path):
    course = course_of(
        tmp_path, tiny_model(layers=3), lora={"rank": 2, "blocks": 2, "target_modules": ("q_proj", "down_proj")}
    )
    adapted = attach_lora(course.model, course.training.lora)
    places = {name.split(".layers.")[1][0] for name, part in adapted.named_parameters() if part.requires_grad}
    assert places == {"0", "1"}


def test_adapters_on_more_blocks_than_there_are_are_refused(tmp_path):
    course = course_of(tmp_path, lora={"rank": 2, "blocks": 3, "target_modules": ("q_proj",)})
    with pytest.raises(BulwarkError, match=r"lora\.blocks is 3, but the model has 2"):
        attach_lora(course.model, course.training.lora)
