"""The loss: the same as from a model's full logits, for every family, padded, packed, and in any number of parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_causal_models import FAMILIES, tiny_model
from torch import Tensor, nn
from training_samples import PAD, examples

from bulwark.models.embeddings import install
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.objectives import at_targets, hidden_states, next_token_loss, target_logits

ASIDE = {"method": "aside", "alpha": 1.5707963267948966, "direction": "right"}


def model_of(family: str, attention: str = "sdpa") -> nn.Module:
    model = tiny_model(family)
    if family == "gemma3":
        model.config.final_logit_softcapping = 3.0
    model.set_attn_implementation(attention)
    install(model, ASIDE)
    return model


def batch_of(count: int = 5, **changes) -> Batch:
    [batch] = StepBatches(examples(count), batch_size=count, micro_batch_size=count, pad_id=PAD, **changes).of_step(0)
    return batch


def reference(model: nn.Module, batch: Batch) -> Tensor:
    """The loss as anyone would write it, from all logits and with the mask."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_full_logits(family, attention):
    model, batch = model_of(family, attention), batch_of()
    losses, gradients = [], []
    for loss in (reference(model, batch), next_token_loss(model, batch)):
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_examples_have_the_loss_they_have_alone(family, attention):
    model = model_of(family, attention)
    packed, flat = batch_of(packed_length=30), batch_of(packed_length=30, flatten=True)
    assert len(packed.rows) < 5
    assert max(len(row) for row in packed.rows) > 1
    with torch.no_grad():
        expected = reference(model, batch_of())
        torch.testing.assert_close(next_token_loss(model, packed), expected)
        torch.testing.assert_close(next_token_loss(model, flat), expected)


def test_only_the_targets_go_through_the_output_embedding():
    model, batch = model_of("llama"), batch_of()
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    logits = target_logits(model, batch)
    handle.remove()
    assert seen == [logits.shape] == [(batch.targets.numel(), model.lm_head.out_features)]
    assert not model.lm_head._forward_pre_hooks


def test_a_model_that_does_not_call_its_output_embedding_is_served_too():
    class Functional(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, input_ids: Tensor, use_cache: bool):
            output = self.inner.model(input_ids=input_ids, use_cache=use_cache)
            output.logits = F.linear(output.last_hidden_state, self.inner.lm_head.weight)
            return output

    model, batch = model_of("llama"), batch_of()
    torch.testing.assert_close(target_logits(Functional(model), batch), target_logits(model, batch))


def test_shares_of_micro_batches_add_up_to_the_mean_over_tokens():
    model = model_of("llama")
    steps = StepBatches(examples(8), batch_size=8, micro_batch_size=2, pad_id=PAD)
    with torch.no_grad():
        total = sum(next_token_loss(model, batch) for batch in steps.of_step(0))
        [whole] = StepBatches(examples(8), batch_size=8, micro_batch_size=8, pad_id=PAD).of_step(0)
        torch.testing.assert_close(total, reference(model, whole))


def test_a_filler_has_a_loss_of_nought_and_gradients_of_nought():
    model = model_of("llama")
    steps = StepBatches(examples(3), batch_size=3, micro_batch_size=1, pad_id=PAD, rank=3, ranks=4)
    [batch] = steps.of_step(0)
    loss = next_token_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_logits_are_given_at_the_positions_that_are_asked_for():
    model, batch = model_of("llama"), batch_of()
    positions = batch.positions[::2]
    with torch.no_grad():
        found = at_targets(model, batch, positions=positions).logits
        whole = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
    torch.testing.assert_close(found, whole[positions])


def test_hidden_states_are_the_embeddings_the_blocks_and_the_last_norm():
    model, batch = model_of("llama"), batch_of()
    with torch.no_grad():
        states = hidden_states(model, batch)
        embedded = model.get_input_embeddings()(batch.input_ids)
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    assert len(states) == model.config.num_hidden_layers + 1
    torch.testing.assert_close(states[0], embedded)
    torch.testing.assert_close(model.lm_head(states[-1]), logits)
