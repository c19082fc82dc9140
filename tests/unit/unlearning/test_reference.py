"""The frozen model: the parent or the base, without gradients, and without a copy where adapters are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tiny_causal_models import tiny_model
from unlearning_samples import batch_of, course_of, forget_examples, hidden_of, with_parent

from bulwark.training.lora import attach_lora
from bulwark.training.objectives import at_targets
from bulwark.unlearning.reference import Reference
from bulwark.unlearning.settings import ReferenceSettings


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05
    return model


def compare(states, model):
    for row, prompt in zip(range(len(forget_examples())), sorted_examples(), strict=True):
        for layer, expected in zip(states, hidden_of(model, prompt), strict=True):
            torch.testing.assert_close(layer[row, : len(prompt.ids)].double(), expected, atol=1e-5, rtol=0)


def sorted_examples():
    """As they lie in a batch."""
    prompts = forget_examples()
    return [prompts[row[0]] for row in batch_of(prompts).rows]


def test_a_loaded_parent_has_the_states_that_training_started_from(tmp_path):
    course = with_parent(course_of(tmp_path))
    reference = Reference(course, ReferenceSettings())
    changed(course.model)
    states = reference.hidden_states(course.model, batch_of(forget_examples()))
    assert not any(layer.requires_grad for layer in states)
    compare(states, tiny_model())


def test_adapters_out_of_the_way_agree_with_a_loaded_parent(tmp_path):
    plain = with_parent(course_of(tmp_path))
    adapted = with_parent(course_of(tmp_path, lora={"rank": 2, "dropout": 0.5}))
    model = attach_lora(adapted.model, adapted.training.lora).train()
    for part in model.modules():
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    batch = batch_of(forget_examples())
    before = [loaded.read_bytes() for loaded in sorted(Path(plain.job.parent).parent.glob("*.safetensors"))]
    for path in Path(adapted.job.parent).parent.glob("*.safetensors"):
        path.unlink()  # nothing is loaded
    reference = Reference(adapted, ReferenceSettings())
    states = reference.hidden_states(model, batch)
    assert before
    assert model.training
    compare(states, tiny_model())
    with torch.no_grad():
        assert not torch.allclose(model(batch.input_ids, output_hidden_states=True).hidden_states[-1], states[-1])


def test_the_base_is_another_model_than_the_parent_even_with_adapters(tmp_path):
    base = with_parent(course_of(tmp_path / "base"))
    course = with_parent(course_of(tmp_path, changed(tiny_model()), lora={"rank": 2}))
    job = replace(course.job, inputs={"reference": base.job.parent})
    reference = Reference(replace(course, job=job), ReferenceSettings(of="base"))
    model = attach_lora(course.model, course.training.lora)
    compare(reference.hidden_states(model, batch_of(forget_examples())), tiny_model())


def test_the_logits_are_those_of_the_targets(tmp_path):
    course = with_parent(course_of(tmp_path))
    batch, model = batch_of(forget_examples()), tiny_model()
    with torch.no_grad():
        loss = Reference(course, ReferenceSettings()).beside(lambda _, known: known[:, 5], course.model, batch)
        found = at_targets(model, batch, loss=loss).logits
        expected = model(batch.input_ids).logits.flatten(0, 1)[batch.target_positions, 5]
    torch.testing.assert_close(found, expected)
