"""Losses in chunks: those of torch's own cross-entropy over all logits, with the same gradients, whatever the head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_causal_models import FAMILIES, HIDDEN, V, tiny_model
from torch import Tensor, nn
from training_samples import PAD, examples, trained
from transformers import AutoModelForCausalLM, Cohere2Config, CohereConfig, FalconH1Config, GraniteConfig

from bulwark.models.embeddings import install
from bulwark.models.readout import chunks, heads
from bulwark.models.readout.losses import CrossEntropy, Each, Form
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.lora import attach_lora
from bulwark.training.objectives import Objective, at_targets, next_token_loss, summed, target_losses
from bulwark.training.settings import LoraSettings

SCALED = {
    "cohere": (CohereConfig, {"logit_scale": 0.0625}),
    "cohere2": (Cohere2Config, {"logit_scale": 0.25}),
    "granite": (GraniteConfig, {"logits_scaling": 8.0}),
}
KINDS = [*FAMILIES, "gemma3-capped", "llama-tied", "llama-lora", "llama-bias", *SCALED]


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    """Three positions of a tiny vocabulary at a time; fewer for a loss that holds more."""
    monkeypatch.setattr(chunks, "CPU_CHUNK", 3 * V)


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    family, _, change = kind.partition("-")
    if family in SCALED:
        config, scale = SCALED[family]
        torch.manual_seed(0)
        sizes = {"vocab_size": V, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2}
        made = config(
            **(sizes | scale),
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = AutoModelForCausalLM.from_config(made, dtype=dtype).eval()
    else:
        model = tiny_model(family, tied=change == "tied", dtype=dtype)
    if change == "capped":
        model.config.final_logit_softcapping = 2.0
    if change == "bias":
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, V, dtype=dtype))
    install(model, {"method": "vanilla"})
    if change == "lora":
        model = attach_lora(model, LoraSettings(rank=3, target_modules=("lm_head", "q_proj")))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(count: int = 5) -> Batch:
    [batch] = StepBatches(examples(count), batch_size=count, micro_batch_size=count, pad_id=PAD).of_step(0)
    return batch


def all_logits(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.flatten(0, 1)[batch.target_positions]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def calls_of(model: nn.Module, monkeypatch) -> list[int]:
    """How many chunks each reading in chunks has; nothing where the plain path was taken."""
    seen: list[int] = []
    parts = chunks._parts
    monkeypatch.setattr(chunks, "_parts", lambda *given: seen.append(len(found := parts(*given))) or found)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_mean_loss_and_gradients_are_those_of_all_logits(kind, monkeypatch):
    model, batch = model_of(kind), batch_of()
    seen = calls_of(model, monkeypatch)
    expected = F.cross_entropy(all_logits(model, batch), batch.targets)
    found = next_token_loss(model, batch)
    assert seen
    assert min(seen) > 3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(model, found), gradients(model, expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [3, 10_000])
def test_single_losses_and_their_gradients_are_those_of_all_logits(kind, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "CPU_CHUNK", chunk * V)
    model, batch = model_of(kind), batch_of()
    weights = torch.linspace(-1, 2, len(batch.targets)) / len(batch.targets)
    expected = F.cross_entropy(all_logits(model, batch), batch.targets, reduction="none")
    found = target_losses(model, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    both = [gradients(model, (weights * losses).sum()) for losses in (found, expected)]
    torch.testing.assert_close(*both, atol=1e-6, rtol=1e-5)


def square_of_entropy(logits: Tensor, rows: slice) -> Tensor:
    log_p = F.log_softmax(logits.float(), -1)
    return (log_p.exp() * log_p).sum(-1).square() + logits[:, 0] * torch.arange(rows.start, rows.stop) / 100


@pytest.mark.parametrize("kind", ["llama", "gemma3-capped", "granite", "llama-lora"])
def test_any_function_of_the_logits_has_the_gradients_that_torch_gives_it(kind):
    model, batch = model_of(kind), batch_of()
    every = slice(0, len(batch.targets))
    for weighted in (False, True):
        loss = Each(square_of_entropy)
        expected = square_of_entropy(all_logits(model, batch), every).sum() / 20
        found = summed(model, batch, loss, 20) if weighted else at_targets(model, batch, loss=loss).logits.sum() / 20
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(model, found), gradients(model, expected), atol=5e-6, rtol=1e-5)


def test_a_sum_has_the_weight_that_each_is_given():
    model, batch = model_of("llama"), batch_of()
    weights = torch.linspace(-1, 2, len(batch.targets))
    expected = (weights * F.cross_entropy(all_logits(model, batch), batch.targets, reduction="none")).sum()
    found = at_targets(model, batch, loss=CrossEntropy(batch.targets), weights=weights).logits
    torch.testing.assert_close(gradients(model, 3 * found), gradients(model, 3 * expected), atol=1e-5, rtol=1e-5)


def test_gradients_in_bfloat16_are_no_worse_than_those_of_all_logits():
    """Measured against float64; the weight's gradient is a sum over chunks, which must not be rounded after each."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, HIDDEN), torch.randn(V, HIDDEN)
    targets = torch.randint(0, V, (600,))

    def of(dtype, chunked):
        x, w = (part.to(dtype).requires_grad_() for part in (hidden.bfloat16(), weight.bfloat16()))
        if chunked:
            loss = chunks.values_of(CrossEntropy(targets), Form(1.0, None, dtype), [x], [w], weights=1.0)
        else:
            loss = F.cross_entropy((x @ w.T).to(torch.promote_types(dtype, torch.float32)), targets, reduction="sum")
        return [one.double() for one in torch.autograd.grad(loss, [x, w])]

    exact, plain, ours = of(torch.float64, False), of(torch.bfloat16, False), of(torch.bfloat16, True)
    for truth, theirs, found in zip(exact, plain, ours, strict=True):
        assert (found - truth).norm() <= 1.1 * (theirs - truth).norm()


@pytest.mark.parametrize("kind", ["llama", "llama-lora"])
def test_what_is_frozen_gets_no_gradient(kind, monkeypatch):
    model, batch = model_of(kind), batch_of()
    model.get_output_embeddings().requires_grad_(False)
    products = []
    added = chunks._added
    monkeypatch.setattr(chunks, "_added", lambda *given: products.append(1) or added(*given))
    found = gradients(model, next_token_loss(model, batch))
    assert not products
    assert found


def test_checkpointed_blocks_give_the_same(monkeypatch):
    model, batch = model_of("llama"), batch_of()
    expected = gradients(model, next_token_loss(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    torch.testing.assert_close(gradients(model, next_token_loss(model, batch)), expected)


def test_without_gradients_nothing_is_kept():
    model, batch = model_of("llama"), batch_of()
    with torch.no_grad():
        found = target_losses(model, batch)
        whole = next_token_loss(model, batch)
    assert not found.requires_grad
    assert not whole.requires_grad
    torch.testing.assert_close(whole, found.mean())


def test_nothing_to_read_has_a_loss_of_nought_and_gradients_of_nought():
    model, batch = model_of("llama"), batch_of()
    empty = Batch(**{**vars(batch), "target_positions": batch.target_positions[:0], "targets": batch.targets[:0]})
    for loss in (next_token_loss(model, empty), target_losses(model, empty).sum()):
        assert loss == 0
        found = gradients(model, loss)
        assert not any(one.any() for one in found.values())
        assert "lm_head.weight" in found


class Odd(nn.Linear):
    """A head of its own kind."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).square()


def with_odd_head(model: nn.Module) -> None:
    head = Odd(HIDDEN, V, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head


def with_masked_logits(model: nn.Module) -> None:
    inner = model.forward

    def forward(**given):
        output = inner(**given)
        output.logits[..., 5] = -30.0  # as Chameleon does with the tokens of images
        return output

    model.forward = forward


def with_hooked_head(model: nn.Module) -> None:
    model.lm_head.register_forward_hook(lambda module, given, output: 2 * output)


def with_head_called_twice(model: nn.Module) -> None:
    inner = model.forward

    def forward(**given):
        output = inner(**given, output_hidden_states=True)
        output.logits = output.logits + model.lm_head(output.hidden_states[-1])
        return output

    model.forward = forward


@pytest.mark.parametrize("change", [with_odd_head, with_masked_logits, with_hooked_head, with_head_called_twice])
def test_a_head_that_is_none_of_these_takes_the_plain_path_with_the_same_results(change, monkeypatch):
    model, batch = model_of("llama"), batch_of()
    change(model)
    seen = calls_of(model, monkeypatch)
    for _ in range(2):
        expected, found = F.cross_entropy(all_logits(model, batch), batch.targets), next_token_loss(model, batch)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(model, found), gradients(model, expected))
    assert not seen


def test_a_soft_cap_that_is_changed_later_is_seen():
    model, batch = model_of("gemma3-capped"), batch_of()
    for cap in (2.0, 0.5):
        model.config.final_logit_softcapping = cap
        expected = F.cross_entropy(all_logits(model, batch), batch.targets)
        torch.testing.assert_close(next_token_loss(model, batch), expected)


def test_a_multiplier_of_the_head_is_known():
    config = FalconH1Config(lm_head_multiplier=0.25)
    probe = torch.linspace(-100, 100, 50)
    assert heads._form(probe, probe.view(1, 1, -1) * 0.25, config) == Form(0.25, None, torch.float32)
    assert heads._form(probe, probe.view(1, 1, -1) * 0.3, config) is None


@pytest.mark.parametrize("same", [False, True], ids=["another model", "the same model"])
def test_a_function_of_two_passes(same):
    """KL up to a constant; the other pass has no gradient. The same module may be read for both."""
    model, other, batch = model_of("llama"), model_of("gemma3-capped"), batch_of()
    other = model if same else other

    def divergence(logits: Tensor, known: Tensor) -> Tensor:
        return -(F.softmax(known.float(), -1) * F.log_softmax(logits.float(), -1)).sum(-1)

    inputs = {**batch.inputs(), "use_cache": False}
    unread = heads.unread(other, inputs, batch.target_positions)
    with torch.no_grad():
        known = all_logits(other, batch)
    expected = divergence(all_logits(model, batch), known).sum()
    found = summed(model, batch, heads.Beside(divergence, unread), 1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found), gradients(model, expected), atol=1e-5, rtol=1e-5)


class Counting(Objective):
    """Counts how often the output embedding is called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def start(self, engine, total):
        head = engine.module.get_output_embeddings()
        head.register_forward_pre_hook(lambda module, given: self.calls.append(len(given[0])))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_under_zero3_the_output_embedding_is_gathered_once_per_micro_batch(precision, tmp_path, monkeypatch):
    def weights(folder, stage, objective=None):
        model = tiny_model(dtype=getattr(torch, precision))
        install(model, {"method": "vanilla"})
        chosen = {"zero_stage": stage, "precision": precision, "max_steps": 3, "evaluate_every": None}
        return trained(model, folder, objective=objective, **chosen).model.state_dict()

    counting = Counting()
    seen = calls_of(tiny_model(), monkeypatch)
    sharded = weights(tmp_path / "three", 3, counting)
    assert len(counting.calls) == len(seen)
    assert max(seen) > 1
    close = {"atol": 1e-5, "rtol": 1e-5} if precision == "float32" else {"atol": 2e-3, "rtol": 2e-2}
    torch.testing.assert_close(sharded, weights(tmp_path / "one", 1), **close)
