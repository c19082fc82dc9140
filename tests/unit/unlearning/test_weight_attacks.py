"""Attacks on weights without training, against values computed by hand, and as steps on a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_causal_models import HIDDEN, V, tiny_model
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import steps
from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install
from bulwark.settings import validated
from bulwark.unlearning.red_team import weights

# Dettmers et al. 2023, App. E, as printed.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpolation_is_exact_at_both_ends(dtype):
    parent, other = drawn(7, 5, dtype=dtype), drawn(7, 5, seed=1, dtype=dtype)
    assert torch.equal(weights.interpolate(parent, other, 0.0), parent)
    assert torch.equal(weights.interpolate(parent, other, 1.0), other)
    for weight in (0.25, -0.5, 1.5):
        by_hand = parent.double() + weight * (other.double() - parent.double())
        ours = weights.interpolate(parent, other, weight)
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), by_hand, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)


def test_a_difference_of_low_rank_is_taken_back_whole_and_of_another_its_leading_part():
    parent, noise = drawn(24, 20), 0.01 * drawn(24, 20, seed=4)
    low = drawn(24, 2, seed=1) @ drawn(2, 20, seed=2)
    assert torch.allclose(weights.interpolate(parent, parent + low, 1.0, rank=2), parent + low, atol=1e-4)
    assert torch.allclose(weights.interpolate(parent, parent + low, 0.5, rank=2), parent + 0.5 * low, atol=1e-4)
    u, s, v = torch.linalg.svd(low + noise)
    best = (u[:, :2] * s[:2]) @ v[:2]
    assert torch.allclose(weights.interpolate(parent, parent + low + noise, 1.0, rank=2), parent + best, atol=1e-3)
    gain = drawn(20)
    assert torch.equal(weights.interpolate(gain, 2 * gain, 1.0, rank=2), gain)


def test_models_of_another_form_are_not_interpolated():
    one, longer, turned = tiny_model(), tiny_model(layers=3), tiny_model()
    for model, method in ((one, "vanilla"), (longer, "vanilla"), (turned, "aside")):
        install(model, {"method": method})
    with pytest.raises(BulwarkError, match="Only one of the two models has the weight"):
        weights.interpolate_models(one, longer, 0.5)
    with pytest.raises(BulwarkError, match=r"role embedding vanilla \(instruction, data\), the other model aside"):
        weights.interpolate_models(one, turned, 0.5)


def test_pruning_takes_the_smallest_of_each_matrix():
    weight = torch.tensor([[3.0, -0.1, 0.2], [-2.0, 0.3, -0.4]])
    assert weights.prune(weight, 0.5).tolist() == [[3.0, 0.0, 0.0], [-2.0, 0.0, pytest.approx(-0.4)]]
    assert weights.prune(weight, 0.34).tolist()[0] == [3.0, 0.0, 0.0]
    assert torch.equal(weights.prune(weight, 0.1), weight)
    assert int((weights.prune(torch.ones(10, 10), 0.29) == 0).sum()) == 29  # of equal ones exactly as many


def test_the_levels_of_nf4_are_the_printed_ones():
    assert weights.nf4_levels() == pytest.approx(NF4, abs=2e-6)


@pytest.mark.parametrize(("block", "shape"), [(None, (6, 16)), (8, (6, 16)), (64, (5, 33))])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_quantising_rounds_to_the_nearest_level(form, block, shape):
    weight = drawn(*shape)
    weight[0] = 0.0
    levels = np.array(NF4) if form == "nf4" else np.arange(-127, 128) / 127
    flat = weight.double().numpy().ravel()
    size = block or shape[1]
    expected = np.empty_like(flat)
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        scale = np.abs(part).max() or 1.0
        near = np.abs(part[:, None] / scale - levels[None]).argmin(1)
        expected[start : start + size] = levels[near] * scale
    ours = weights.quantise(weight, form, block)
    assert torch.allclose(ours.double(), torch.from_numpy(expected).view(shape), atol=3e-6)


def test_noise_is_in_proportion_to_the_weight():
    weight = 3.0 * drawn(200, 200)
    moved = weights.perturb(weight, 0.1, torch.Generator().manual_seed(5)) - weight
    assert moved.std().item() == pytest.approx(0.3, rel=0.02)
    assert moved.mean().item() == pytest.approx(0.0, abs=0.01)
    assert torch.equal(moved, weights.perturb(weight, 0.1, torch.Generator().manual_seed(5)) - weight)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two checkpoints, `parent` (with roles turned) and `other`, stored in bfloat16."""
    place = tmp_path_factory.mktemp("weights")
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    for seed, name in enumerate(("parent", "other")):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=500, initializer_range=0.2, tie_word_embeddings=False, **sizes)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        install(model, {"method": "aside"})
        checkpoints.save_model(model, tiny_tokenizer("chatml"), place / name)
        manifests.write_manifest(place / name / "checkpoint.json", {"template": "alpaca"})
    return place


def done(place, out, kind, settings, seed=0):
    """The model that the step makes of `parent`, that of `parent`, and the manifest."""
    inputs = {"other": str(place / "other/checkpoint.json")} if kind == "interpolate" else {}
    output = out / "checkpoint.json"
    identity = {"model": "tiny", "recipe": kind, "seed": seed}
    parent = place / "parent/checkpoint.json"
    steps.execute(Job(kind, settings, str(parent), str(output), inputs, identity, str(out / "log")))
    made = checkpoints.load_model(out, dtype="auto")
    return made, checkpoints.load_model(parent.parent, dtype="auto"), json.loads(output.read_text())


def differing(one, other):
    theirs = dict(other.named_parameters())
    return {name for name, weight in one.named_parameters() if not torch.equal(weight, theirs[name])}


def in_blocks(model):
    return {name for name, weight in model.named_parameters() if ".layers." in name and weight.dim() > 1}


def test_interpolating_as_a_step(place, tmp_path):
    made, parent, manifest = done(place, tmp_path / "0", "interpolate", {"weight": 0.0})
    assert differing(made, parent) == set()
    assert made.dtype == torch.bfloat16
    assert manifest["template"] == "alpaca"
    made, _, _ = done(place, tmp_path / "1", "interpolate", {"weight": 1.0})
    assert differing(made, checkpoints.load_model(place / "other", dtype="auto")) == set()
    half, _, _ = done(place, tmp_path / "half", "interpolate", {"weight": 0.5})
    assert "model.embed_tokens.weight" in differing(half, parent)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("prune", {"fraction": 0.3}),
        ("quantise", {"format": "nf4", "block": 64}),
        ("quantise", {"format": "int8"}),
        ("perturb", {"scale": 0.01}),
    ],
)
def test_matrices_of_blocks_change_and_nothing_else(place, tmp_path, kind, settings):
    made, parent, manifest = done(place, tmp_path, kind, settings)
    assert differing(made, parent) == in_blocks(parent)
    assert made.get_input_embeddings().method == "aside"
    assert manifest["changed"]["matrices"] == len(in_blocks(parent)) == 21
    if kind == "prune":
        assert manifest["changed"]["zero_share"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_drawn_anew(place, tmp_path, seed):
    settings = {"output_embedding": True, "last_blocks": 1}
    made, parent, manifest = done(place, tmp_path / "a", "reinitialise", settings, seed)
    changed = differing(made, parent)
    assert changed == {"lm_head.weight"} | {name for name in in_blocks(parent) if ".layers.2." in name}
    assert manifest["changed"]["parts"] == ["block 3", "output embedding"]
    weight = made.lm_head.weight.float()
    assert weight.std().item() == pytest.approx(0.2, rel=0.05)
    again, _, _ = done(place, tmp_path / "b", "reinitialise", settings, seed)
    assert differing(made, again) == set()
    other, _, _ = done(place, tmp_path / "c", "reinitialise", settings, seed + 1)
    assert differing(made, other) == changed


def test_norms_of_a_block_drawn_anew_are_ones():
    model = tiny_model()
    install(model, {"method": "vanilla"})
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(3.0)
        model.model.layers[0].input_layernorm.weight.fill_(3.0)
    weights_before = model.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        assert weights.reinitialise(model, False, 1, 0) == ["block 2"]
    assert (model.model.layers[1].input_layernorm.weight == 1).all()
    assert (model.model.layers[0].input_layernorm.weight == 3).all()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, weights_before)


def test_what_cannot_be_drawn_anew():
    model = tiny_model(tied=True)
    install(model, {"method": "vanilla"})
    assert model.lm_head.weight.shape[0] == V
    with pytest.raises(BulwarkError, match="output embedding is its input embedding"):
        weights.reinitialise(model, True, 0, 0)
    with pytest.raises(BulwarkError, match="the model has 2 decoder blocks, not 3"):
        weights.reinitialise(model, False, 3, 0)
    with pytest.raises(ConfigurationError, match="nothing is drawn anew"):
        validated(steps.module_of("reinitialise").Settings, {}, "settings")


def test_the_other_model_is_an_input():
    settings = steps.module_of("interpolate").Settings(weight=0.5, other="random_map+tar")
    assert settings.inputs() == {"other": "checkpoints/{model}/random_map+tar/seed{seed}/checkpoint.json"}
