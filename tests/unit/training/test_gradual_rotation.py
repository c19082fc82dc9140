"""ASIDE's gradual rotation: the angle of each pass, in training and in evaluation."""

from __future__ import annotations

import math

import pytest
from tiny_causal_models import tiny_model
from training_samples import trained

from bulwark.models.embeddings import install, role_embedding_of
from bulwark.steps import aside

PER_EPOCH = 4


def test_the_angle_grows_over_the_first_epoch_and_is_evaluated_as_it_goes_on(tmp_path):
    model = tiny_model()
    install(model, {"method": "aside", "angle": 0.0})
    seen: dict[bool, list[float]] = {True: [], False: []}
    embedding = role_embedding_of(model)
    embedding.register_forward_hook(lambda module, _, __: seen[module.training].append(module.angle))
    objective = aside.gradual_rotation(math.pi / 2, PER_EPOCH)
    done = trained(model, tmp_path, objective=objective, max_steps=6, evaluate_every=1, micro_batch_size=4)
    shares = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert seen[True] == pytest.approx([math.pi / 2 * share for share in shares[:6]])
    assert list(dict.fromkeys(seen[False])) == pytest.approx([math.pi / 2 * share for share in shares[1:5]])
    assert role_embedding_of(done.model).angle == math.pi / 2
