"""Attention by part against transformers' own weights; distances of embeddings against numpy."""

import numpy as np
import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.errors import BulwarkError
from bulwark.interpretability.attention import attention_to_parts
from bulwark.interpretability.distances import between, distances, of_roles, summary
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.prompts.builder import PromptBuilder

BUILDER = PromptBuilder(tiny_tokenizer("chatml"), "chat", V)
PROMPTS = [
    BUILDER.prompt((Turn(role="instruction", text="name the tree"), Turn(role="data", text=text)))
    for text in ("a cup", "the cup is red and the tree is green", "no")
]


def parts_of(prompt):
    places = list(range(len(prompt.ids)))
    return {"first": places[:2], "middle": places[2:-3], "none": [], "end": places[-3:]}


@pytest.mark.parametrize("budget", [None, 40])
def test_shares_are_those_of_transformers_weights(budget):
    model = tiny_aside()
    before = model.config._attn_implementation
    parts = [parts_of(prompt) for prompt in PROMPTS]
    found = attention_to_parts(model, PROMPTS, parts, BUILDER.pad_id, token_budget=budget)
    assert model.config._attn_implementation == before
    model.set_attn_implementation("eager")
    for prompt, of_prompt, shares in zip(PROMPTS, parts, found, strict=True):
        with torch.inference_mode():
            weights = model(input_ids=torch.tensor([prompt.ids]), output_attentions=True).attentions
        assert [len(values) for values in shares.values()] == [2] * 4
        for layer, of_layer in enumerate(weights):
            by_hand = of_layer[0, :, -1].mean(0)
            for part, places in of_prompt.items():
                assert shares[part][layer] == pytest.approx(float(by_hand[places].sum()), abs=1e-5)
            assert sum(values[layer] for values in shares.values()) == pytest.approx(1.0, abs=1e-5)


def test_the_models_own_attention_is_back_after_an_error():
    model = tiny_aside()
    before = model.config._attn_implementation
    with pytest.raises(KeyError):
        attention_to_parts(model, PROMPTS, [{"a": [0]}, {"b": [0]}, {"a": [0]}], BUILDER.pad_id)
    assert model.config._attn_implementation == before


def test_distances_are_numpys():
    one, other = torch.randn(7, 6), torch.randn(7, 6)
    found = distances(one, other)
    a, b = one.double().numpy(), other.double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found["cosine"], cosine, rtol=1e-6)
    np.testing.assert_allclose(found["l2"], np.linalg.norm(a - b, axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["linf"], np.abs(a - b).max(1), rtol=1e-6)


def test_a_quarter_turn_is_at_right_angles_and_a_vanilla_embedding_has_no_roles():
    model = tiny_aside()
    roles = of_roles(model)
    assert roles["cosine"].shape == (V,)
    np.testing.assert_allclose(roles["cosine"], 0, atol=1e-6)
    norms = role_embedding_of(model).weight.detach().double().norm(dim=1)
    np.testing.assert_allclose(roles["l2"], np.sqrt(2) * norms, rtol=1e-5)
    install(model, {"method": "vanilla"})
    vanilla = of_roles(model, [3, 5])
    np.testing.assert_allclose(vanilla["cosine"], 1, atol=1e-6)
    assert vanilla["l2"].tolist() == [0, 0]


def test_what_training_moved_is_told_by_role():
    model, before = tiny_aside(), tiny_aside()
    install(before, {"method": "vanilla"})
    np.testing.assert_allclose(between(model, before, "instruction")["l2"], 0)
    np.testing.assert_allclose(between(model, before, "data")["cosine"], 0, atol=1e-6)
    wider = tiny_aside()
    role_embedding_of(wider).weight = torch.nn.Parameter(torch.zeros(V + 1, 32))
    with pytest.raises(BulwarkError, match="cannot be compared row by row"):
        between(model, wider, "data")


def test_the_summary_is_numpys():
    values = torch.randn(1234, dtype=torch.float64)
    found = summary(values)
    assert found["mean"] == pytest.approx(float(np.mean(values.numpy())))
    assert found["std"] == pytest.approx(float(np.std(values.numpy())))
    for percent in (5, 10, 50, 90, 95):
        assert found[f"p{percent}"] == pytest.approx(float(np.percentile(values.numpy(), percent)))
    assert (found["min"], found["max"]) == (float(values.min()), float(values.max()))
