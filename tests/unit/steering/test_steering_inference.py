"""Steering while a model generates: which positions change, in which pass."""

from __future__ import annotations

import pytest
import torch
from tiny_causal_models import HIDDEN, tiny_model

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models.anatomy import blocks_of
from bulwark.steering.intervention import steer_generation

LAYERS = 3


def passes(positions: str | None, coefficient: float = 2.0) -> list[torch.Tensor]:
    """h_2 of the passes of a generation of three tokens, after steering there; the first pass is the prompt's."""
    model = tiny_model(layers=LAYERS)
    kept: list[torch.Tensor] = []

    def generate() -> None:
        block = blocks_of(model)[1]
        handle = block.register_forward_hook(lambda _, __, output: kept.append(output.detach().clone()))
        ids = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]])
        # the same tokens whatever the steering, so that the passes can be compared
        with torch.no_grad():
            cache = model(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=True).past_key_values
            for token in (12, 13):
                model(input_ids=torch.full((2, 1), token), past_key_values=cache, use_cache=True)
        handle.remove()

    if positions is None:
        generate()
    else:
        with steer_generation(model, 2, torch.arange(HIDDEN) / HIDDEN, coefficient, positions):
            generate()
    return kept


@pytest.mark.parametrize("coefficient", [2.0, -1.5])
@pytest.mark.parametrize(
    ("positions", "prompt", "later"),
    [
        ("all", [True, True, True, True], True),
        ("prompt", [True, True, True, True], False),
        ("response", [False, False, False, True], True),
    ],
)
def test_the_vector_is_added_at_the_positions_that_are_named(positions, prompt, later, coefficient):
    added = coefficient * torch.arange(HIDDEN) / HIDDEN
    before, after = passes(None), passes(positions, coefficient)
    assert [tuple(one.shape) for one in after] == [(2, 4, HIDDEN), (2, 1, HIDDEN), (2, 1, HIDDEN)]
    for position, changed in enumerate(prompt):
        expected = before[0][:, position] + added if changed else before[0][:, position]
        torch.testing.assert_close(after[0][:, position], expected)
    for one, other in zip(before[1:], after[1:], strict=True):
        # blocks below are not steered, so that h_2 differs by the vector alone
        torch.testing.assert_close(other, one + added if later else one)


def test_contexts_may_be_nested_for_several_layers_and_end():
    model, ids = tiny_model(layers=LAYERS), torch.tensor([[5, 6, 7]])
    vector = torch.ones(HIDDEN)
    with torch.no_grad():
        plain = model(ids).logits
        with steer_generation(model, 1, vector, 1.0, "all"):
            one = model(ids).logits
            with steer_generation(model, 2, vector, 1.0, "all"):
                both = model(ids).logits
        after = model(ids).logits
    assert torch.equal(plain, after)
    assert not torch.allclose(one, plain)
    assert not torch.allclose(both, one)


def test_generate_is_steered_and_ends():
    model, ids = tiny_model(layers=LAYERS), torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    direction = model.lm_head.weight[17].detach()
    with steer_generation(model, 2, 50.0 * direction, 1.0):
        steered = model.generate(ids, **options)
    assert (steered[0, 3:] == 17).sum() > (plain[0, 3:] == 17).sum()
    assert torch.equal(model.generate(ids, **options), plain)


def test_wrong_layers_and_vectors_are_refused():
    model = tiny_model(layers=LAYERS)
    for layer in (0, LAYERS):
        with (
            pytest.raises(ConfigurationError, match="not a layer key"),
            steer_generation(model, layer, torch.ones(HIDDEN), 1.0),
        ):
            pass
    with pytest.raises(BulwarkError, match=r"shape \[3\]"), steer_generation(model, 1, torch.ones(3), 1.0):
        pass
