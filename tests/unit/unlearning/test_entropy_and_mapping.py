"""Max entropy and random mapping: the loss and what counts in it, against each example by itself in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_causal_models import V, tiny_model
from training_samples import PAD
from unlearning_samples import batch_of, course_of, forget_examples, hidden_of, learned, log_p_of, objective_of

from bulwark.errors import ConfigurationError
from bulwark.settings import validated
from bulwark.steps import max_entropy
from bulwark.unlearning.losses import random_rows
from bulwark.unlearning.padding import counted


def forget_loss(kind, tmp_path, model, **given):
    objective = objective_of(kind, course_of(tmp_path, model, max_tokens=16, seed=7), **given)
    with torch.no_grad():
        return objective.forget_loss(model, batch_of(forget_examples())).item()


def entropies(model, prompt):
    log_p = log_p_of(model, prompt)
    return -(log_p.exp() * log_p).sum(dim=-1)


def test_max_entropy_is_a_mean_over_all_tokens(tmp_path):
    model = tiny_model()
    every = torch.cat([entropies(model, prompt) for prompt in forget_examples()])
    assert forget_loss("max_entropy", tmp_path, model) == pytest.approx(-every.mean().item(), abs=1e-5)


def test_max_entropy_at_targets_is_a_mean_over_what_is_predicted(tmp_path):
    model = tiny_model()
    some = [entropies(model, prompt)[place] for prompt in forget_examples() for place, _ in learned(prompt)]
    found = forget_loss("max_entropy", tmp_path, model, positions="targets")
    assert found == pytest.approx(-torch.stack(some).mean().item(), abs=1e-5)


def misalignments(model, prompt, seed=7):
    rows = random_rows(torch.tensor(prompt.ids), 16, seed).double()
    layers = [1 - torch.cosine_similarity(layer, rows, dim=-1).abs() for layer in hidden_of(model, prompt)]
    assert len(layers) == model.config.num_hidden_layers + 1
    return torch.stack(layers).mean(dim=0)


def test_random_mapping_is_a_mean_over_tokens_and_all_hidden_states(tmp_path):
    model = tiny_model()
    every = torch.cat([misalignments(model, prompt) for prompt in forget_examples()])
    assert forget_loss("random_map", tmp_path, model) == pytest.approx(every.mean().item(), abs=1e-5)


def test_the_target_of_random_mapping_belongs_to_the_token_whatever_its_role(tmp_path):
    model = tiny_model()
    objective = objective_of("random_map", course_of(tmp_path, model, seed=7))
    seen = []
    batch = batch_of(forget_examples())
    with_roles = batch.input_ids + V * batch.attention_mask

    def passing(model_inputs):
        seen.append(model_inputs)
        return tiny_model()(input_ids=model_inputs % V, output_hidden_states=True)

    class Decoding(torch.nn.Module):
        def get_output_embeddings(self):
            return torch.nn.Linear(1, 1)

        def forward(self, input_ids, **options):
            return passing(input_ids)

    with torch.no_grad():
        plain = objective.forget_loss(model, batch)
        found = objective.forget_loss(Decoding(), type(batch)(**(vars(batch) | {"input_ids": with_roles})))
    torch.testing.assert_close(found, plain)
    assert seen


@pytest.mark.parametrize("kind", ["max_entropy", "random_map"])
def test_padding_counts_where_that_is_asked_for(kind, tmp_path):
    model, prompts = tiny_model(), forget_examples()
    padded = [type(p)(p.ids + [PAD] * (16 - len(p.ids)), p.labels, p.roles, [], "", False) for p in prompts]
    values = {"max_entropy": lambda p: -entropies(model, p), "random_map": lambda p: misalignments(model, p)}[kind]
    every = torch.cat([values(prompt) for prompt in padded])
    assert every.numel() == 16 * len(prompts)
    found = forget_loss(kind, tmp_path, model, count_padding=True)
    assert found == pytest.approx(every.mean().item(), abs=1e-5)
    assert found != pytest.approx(forget_loss(kind, tmp_path, model), abs=1e-3)


def test_counted_padding_keeps_targets_and_leaves_fillers_out():
    batch = batch_of(forget_examples())
    filler = type(batch)(**(vars(batch) | {"rows": ((),) * len(batch.rows)}))
    assert counted(filler, 16, PAD).positions.numel() == 0
    wide = counted(batch, 16, PAD)
    assert wide.step_positions == 16 * len(batch.rows)
    assert wide.labels.flatten()[wide.target_positions + 1].tolist() == batch.targets.tolist()


def test_counted_padding_needs_a_length():
    training = {"max_steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0}
    settings = {"data": "r", "forget": "f", "training": training, "count_padding": True}
    with pytest.raises(ConfigurationError, match=r"training\.max_tokens"):
        validated(max_entropy.Settings, settings, "here")
