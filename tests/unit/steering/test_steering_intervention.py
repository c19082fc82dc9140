"""Interventions on hidden states, forward and backward: acceptance tests 2, 3 and 4 of steering, and layer keys."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_causal_models import HIDDEN, tiny_model
from torch import Tensor, nn
from training_samples import PAD, examples

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models.anatomy import blocks_of, check_layer, hidden_size, site_module
from bulwark.models.embeddings import install
from bulwark.steering.intervention import Ablation, Intervention, token_mask
from bulwark.training.batches import IGNORED, Batch, StepBatches
from bulwark.training.objectives import next_token_loss

STEERED = ["llama", "qwen2", "gemma3"]
SITES = ["block", "o_proj", "down_proj"]
LAYERS = 4


def model_of(family: str = "llama") -> nn.Module:
    model = tiny_model(family, layers=LAYERS).train()
    install(model, {"method": "vanilla"})
    return model


def batch_of(count: int = 5) -> Batch:
    [batch] = StepBatches(examples(count), batch_size=count, micro_batch_size=count, pad_id=PAD).of_step(0)
    return batch


def vector(seed: int = 5, size: float = 2.0) -> Tensor:
    drawn = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))
    return size * drawn / drawn.norm()


def states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """h_1 … h_N as the blocks put them out, after any intervention."""
    kept: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _, __, output: kept.append((output[0] if isinstance(output, tuple) else output).detach())
        )
        for block in blocks_of(model)
    ]
    try:
        next_token_loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def gradients(model: nn.Module, batch: Batch, acting=None) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    with acting or contextlib.nullcontext():
        loss = next_token_loss(model, batch)
        loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", STEERED)
def test_2_at_alpha_nought_loss_and_gradients_are_bitwise_those_without(family, site, adaptive):
    model, batch = model_of(family), batch_of()
    steering = Intervention(model, {1: vector(), 3: vector(6)}, site=site, adaptive=adaptive)
    plain_loss, plain = gradients(model, batch)
    loss, found = gradients(model, batch, steering.on(token_mask(batch, "response"), 0.0))
    assert torch.equal(loss, plain_loss)
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", STEERED)
def test_3_only_masked_positions_change_and_later_ones_above(family, site):
    model, batch = model_of(family).eval(), batch_of()
    mask = token_mask(batch, "response")
    before = states(model, batch)
    with Intervention(model, {2: vector()}, site=site).on(mask, 3.0):
        after = states(model, batch)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][~mask], before[1][~mask])
    assert (after[1] != before[1]).any(-1)[mask].all()
    reached = mask.long().cumsum(1) > 0  # from the first response token on
    for layer in (2, 3):
        assert torch.equal(after[layer][~reached], before[layer][~reached])
        assert not torch.equal(after[layer][reached], before[layer][reached])


def test_3_the_block_gets_exactly_alpha_times_the_vector():
    model, batch = model_of().eval(), batch_of()
    mask, v = token_mask(batch, "response"), vector()
    before = states(model, batch)[1]
    with Intervention(model, {2: v}).on(mask, 3.0):
        after = states(model, batch)[1]
    assert torch.equal(after, before + 3.0 * mask.unsqueeze(-1) * v)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", STEERED)
def test_4_gradient_checkpointing_changes_nothing(family, site, adaptive):
    model, batch = model_of(family), batch_of()
    steering = Intervention(model, {2: vector()}, site=site, adaptive=adaptive)
    mask, alpha = token_mask(batch, "response"), torch.linspace(0.5, 2.0, len(batch.rows))
    whole_loss, whole = gradients(model, batch, steering.on(mask, alpha))
    model.activation_checkpointing_enable({"use_reentrant": False})
    loss, found = gradients(model, batch, steering.on(mask, alpha))
    torch.testing.assert_close(loss, whole_loss)
    torch.testing.assert_close(found, whole)
    model.activation_checkpointing_disable()
    _, plain = gradients(model, batch)
    assert any(not torch.allclose(one, other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", STEERED)
def test_4_gradient_checkpointing_changes_nothing_under_ablation(family, site):
    model, batch = model_of(family), batch_of()
    ablation = Ablation(model, {1: vector(), 2: vector(6)}, site=site)
    _, whole = gradients(model, batch, ablation.on(token_mask(batch, "all")))
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, found = gradients(model, batch, ablation.on(token_mask(batch, "all")))
    torch.testing.assert_close(found, whole)


def test_gradients_are_those_of_the_changed_function():
    """Finite differences in fp64, through the norm that the adaptive strength depends on."""
    model, batch = model_of().double(), batch_of(3)
    mask = token_mask(batch, "response")
    steering = Intervention(model, {2: vector()}, adaptive=True)
    steering.at[2] = steering.at[2].double()
    weight = blocks_of(model)[0].mlp.down_proj.weight
    _, _ = gradients(model, batch, steering.on(mask, 1.5))
    place = divmod(int(weight.grad.abs().argmax()), weight.shape[1])
    expected = weight.grad[place].item()

    def loss(shift: float) -> float:
        with torch.no_grad(), steering.on(mask, 1.5):
            weight[place] += shift
            value = next_token_loss(model, batch).item()
            weight[place] -= shift
        return value

    # strength and change are computed in fp32, so the difference must not be too small
    assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(expected, rel=5e-3)


def test_each_row_has_its_own_strength():
    model, batch = model_of().eval(), batch_of(4)
    mask, v = token_mask(batch, "response"), vector()
    alpha = torch.tensor([0.0, 1.0, -2.0, 0.5])
    before = states(model, batch)[0]
    with Intervention(model, {1: v}).on(mask, alpha):
        after = states(model, batch)[0]
    torch.testing.assert_close(after - before, alpha.view(-1, 1, 1) * mask.unsqueeze(-1) * v)
    assert torch.equal(after[0], before[0])


def test_rows_together_are_the_rows_alone_also_when_adaptive():
    """The adaptive strength is each row's own, so that neither micro-batches nor ranks matter."""
    model, count = model_of().eval(), 4
    steps = StepBatches(examples(count), batch_size=count, micro_batch_size=1, pad_id=PAD)
    steering = Intervention(model, {2: vector()}, adaptive=True)

    def loss(batch: Batch) -> Tensor:
        with torch.no_grad(), steering.on(token_mask(batch, "response"), 0.7):
            return next_token_loss(model, batch)

    torch.testing.assert_close(sum(map(loss, steps.of_step(0))), loss(batch_of(count)))


def test_the_adaptive_strength_is_a_share_of_the_hidden_states_norm():
    model, batch = model_of().eval(), batch_of()
    mask, v = token_mask(batch, "response"), vector(size=7.0)
    before = states(model, batch)[1]
    with Intervention(model, {2: v}, adaptive=True).on(mask, 0.25):
        after = states(model, batch)[1]
    for row in range(len(batch.rows)):
        added = (after - before)[row][mask[row]].norm(dim=-1)
        mean = before[row][mask[row]].norm(dim=-1).mean()
        torch.testing.assert_close(added, (0.25 * mean).expand_as(added))


def test_several_layers_at_once_are_the_layers_one_inside_the_other():
    model, batch = model_of().eval(), batch_of()
    mask, one, other = token_mask(batch, "response"), vector(1), vector(2)
    with Intervention(model, {1: one, 3: other}).on(mask, 1.5):
        together = states(model, batch)
    with Intervention(model, {1: one}).on(mask, 1.5), Intervention(model, {3: other}).on(mask, 1.5):
        nested = states(model, batch)
    assert all(map(torch.equal, together, nested))
    with Intervention(model, {1: one}).on(mask, 1.5):
        alone = states(model, batch)
    assert torch.equal(together[1], alone[1])
    assert not torch.equal(together[2], alone[2])


def test_ablation_leaves_nothing_along_the_direction_and_all_across_it():
    model, batch = model_of().eval(), batch_of()
    mask, v = token_mask(batch, "response"), vector(size=9.0)
    before = states(model, batch)[1]
    with Ablation(model, {2: v}).on(mask):
        after = states(model, batch)[1]
    unit = v / v.norm()
    torch.testing.assert_close((after[mask] @ unit), torch.zeros(int(mask.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[mask], before[mask] - (before[mask] @ unit).unsqueeze(-1) * unit)
    assert torch.equal(after[~mask], before[~mask])


def test_hooks_are_gone_afterwards_also_after_an_error():
    model, batch = model_of().eval(), batch_of()
    before = states(model, batch)
    steering = Intervention(model, {2: vector()}, site="o_proj")
    with pytest.raises(RuntimeError, match="stop"), steering.on(token_mask(batch, "all"), 5.0):
        raise RuntimeError("stop")
    assert all(map(torch.equal, states(model, batch), before))
    assert not site_module(model, 2, "o_proj")._forward_hooks


def test_masks():
    batch = batch_of()
    response, predicting, everything = (token_mask(batch, name) for name in ("response", "predicting", "all"))
    assert torch.equal(response, batch.labels != IGNORED)
    assert torch.equal(everything, batch.attention_mask.bool())
    assert torch.equal(predicting.flatten().nonzero().flatten(), batch.target_positions.sort().values)
    assert torch.equal(predicting[:, :-1], response[:, 1:])
    assert not (response & ~everything).any()


def test_a_mask_of_another_batch_is_refused():
    model = model_of()
    other = Intervention(model, {2: vector()}).on(token_mask(batch_of(3), "all"), 1.0)
    with other, pytest.raises(BulwarkError, match=r"a mask of \[3, \d+\] tokens, the model has \[5, \d+\]"):
        next_token_loss(model, batch_of(5))


@pytest.mark.parametrize("build", [Intervention, Ablation])
def test_14_wrong_layers_and_vectors_are_refused(build):
    model = model_of()
    for layer in (0, LAYERS, LAYERS + 1, -1):
        with pytest.raises(ConfigurationError, match=f"{layer} is not a layer key of a model with {LAYERS} blocks"):
            build(model, {layer: vector()})
    with pytest.raises(BulwarkError, match=r"layer 2: the vector has shape \[7\], the model needs \[16\]"):
        build(model, {2: torch.ones(7)})


def test_14_layer_keys_are_checked_with_their_reason():
    for layer in range(1, LAYERS):
        check_layer(layer, LAYERS)
    with pytest.raises(ConfigurationError, match="0 is the embeddings"):
        check_layer(0, LAYERS, "vectors.layers")
    with pytest.raises(ConfigurationError, match=r"only passes the final norm.*from 1 to 3"):
        check_layer(LAYERS, LAYERS)


def test_a_vector_without_direction_cannot_be_ablated():
    with pytest.raises(BulwarkError, match="layer 2 is 0"):
        Ablation(model_of(), {2: torch.zeros(HIDDEN)})


@pytest.mark.parametrize("family", [*STEERED, "gpt_neox"])
def test_sites_are_found_through_wrappers(family):
    model = model_of(family)

    class Engine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

    assert hidden_size(Engine()) == HIDDEN
    assert list(blocks_of(Engine())) == list(blocks_of(model))
    for site in SITES:
        assert site_module(Engine(), 2, site) is site_module(model, 2, site)


def test_sites_are_found_under_adapters():
    from peft import LoraConfig, get_peft_model

    model = model_of("qwen2")
    blocks = list(blocks_of(model))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj", "down_proj"]))
    assert list(blocks_of(adapted)) == blocks
    batch, mask = batch_of(), token_mask(batch_of(), "response")
    before = states(adapted.eval(), batch)[1]
    with Intervention(adapted, {2: vector()}, site="o_proj").on(mask, 2.0):
        after = states(adapted, batch)[1]
    assert torch.equal(after[~mask], before[~mask])
    assert not torch.equal(after[mask], before[mask])
