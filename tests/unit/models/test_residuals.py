"""Residuals at the last token, KL, and log-odds of refusing."""

from __future__ import annotations

import math

import pytest
import torch
from abliteration_samples import V, asked, builder_of, family_model, plain_ids, refusing_model, texts

from bulwark.abliteration.measure.measuring import first_token_log_probabilities, kl_divergence, refusal_score
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import final_norm_of
from bulwark.models.residuals import last_token_residuals, winsorised
from bulwark.prompts.builder import Prompt

PAD = 2


def uneven() -> list[Prompt]:
    """Prompts of several lengths."""
    words = ["make", "make a bad3", "sell a good1 a bad2 a good4", "hide good2 a", "build a bad7 a bad1"]
    return asked(words)


def random_prompts(count: int = 5, vocabulary: int = 29) -> list[Prompt]:
    generator = torch.Generator().manual_seed(6)
    rows = [torch.randint(3, vocabulary, (4 + 2 * n,), generator=generator).tolist() for n in range(count)]
    return [Prompt(ids, None, [0] * len(ids), [], "", False) for ids in rows]


@torch.inference_mode()
def hidden_states(model, prompt: Prompt, position: int = -1) -> torch.Tensor:
    """transformers' own, [L+1, hidden], at one position of a prompt that is alone in its batch."""
    ids = torch.tensor([prompt.ids])
    states = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([layer[0, position] for layer in states]).float()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "olmo2", "qwen3_moe"])
@pytest.mark.parametrize("final_norm", [False, True])
def test_residuals_are_transformers_hidden_states_at_the_last_token(family, final_norm):
    """Rows 0 … L-1 always, and row L where it is put through the final norm, as theirs is."""
    model, prompts = family_model(family), random_prompts()
    found = last_token_residuals(model, prompts, 0, final_norm=final_norm, keep=True)
    expected = torch.stack([hidden_states(model, prompt) for prompt in prompts])
    assert found.rows.shape == expected.shape == (5, 3, 16)
    assert torch.allclose(found.rows[:, :-1], expected[:, :-1], atol=1e-5)
    last = found.rows[:, -1]
    if not final_norm:
        assert not torch.allclose(last, expected[:, -1], atol=1e-2)
        last = final_norm_of(model)(last).detach()
    assert torch.allclose(last, expected[:, -1], atol=1e-5)


def test_a_prompt_alone_and_in_a_padded_batch_has_the_same_residuals_in_the_given_order():
    model, prompts = refusing_model(), uneven()
    assert len({len(prompt.ids) for prompt in prompts}) > 3
    together = last_token_residuals(model, prompts, PAD, keep=True)
    small = last_token_residuals(model, prompts, PAD, keep=True, token_budget=1)
    for place, prompt in enumerate(prompts):
        alone = last_token_residuals(model, [prompt], PAD, keep=True)
        assert torch.allclose(alone.rows[0], together.rows[place], atol=1e-5)
        assert torch.allclose(alone.rows[0], small.rows[place], atol=1e-5)
    assert torch.allclose(together.mean, small.mean, atol=1e-6)


def test_the_last_token_is_the_templates_last():
    builder, prompts = builder_of(), uneven()
    header = builder.tokenizer.encode("<|im_start|>assistant", add_special_tokens=False)
    assert all(plain_ids(prompt)[-2:] == header for prompt in prompts)
    model, prompt = refusing_model(), prompts[1]
    found = last_token_residuals(model, [prompt], PAD, keep=True).rows[0]
    embedded = model.get_input_embeddings()(torch.tensor(prompt.ids[-1:]))[0]
    assert torch.allclose(found[0], embedded)


def test_streamed_means_and_variances_are_the_direct_ones_in_float64():
    model, prompts = refusing_model(), asked(texts("harmful", "search") + texts("harmless", "search"))
    for budget in (None, 40, 1):
        found = last_token_residuals(model, prompts, PAD, keep=True, token_budget=budget)
        wide = found.rows.double()
        assert found.n == len(prompts)
        assert found.mean.dtype == found.variance.dtype == torch.float64
        assert torch.allclose(found.mean, wide.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(found.variance, wide.var(0, correction=0), rtol=1e-9, atol=1e-12)
        assert torch.equal(found.variance[0], torch.zeros_like(found.variance[0]))  # the same token for all


def test_small_variances_survive_large_means():
    model, prompts = refusing_model(), asked(texts("harmful", "search"))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1000.0)
    found = last_token_residuals(model, prompts, PAD, keep=True)
    assert torch.allclose(found.variance, found.rows.double().var(0, correction=0), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995])
def test_winsorising_clamps_every_row_to_the_quantile_of_its_own_components(quantile):
    rows = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(1)) ** 3
    found = winsorised(rows, quantile)
    for n in range(4):
        for layer in range(3):
            bound = torch.quantile(rows[n, layer].abs(), quantile)
            assert torch.equal(found[n, layer], rows[n, layer].clamp(-bound, bound))
    assert float((found - rows).abs().max()) > 0


def test_winsorising_is_off_at_one_and_reaches_the_residuals_below_it():
    rows = torch.randn(2, 5)
    assert winsorised(rows, 1.0) is rows
    model, prompts = refusing_model(), uneven()
    plain = last_token_residuals(model, prompts, PAD, keep=True)
    off = last_token_residuals(model, prompts, PAD, keep=True, winsorise=1.0)
    clamped = last_token_residuals(model, prompts, PAD, keep=True, winsorise=0.8)
    assert torch.equal(plain.rows, off.rows)
    assert torch.allclose(clamped.rows, winsorised(plain.rows, 0.8), atol=1e-6)


def test_what_was_not_kept_cannot_be_asked_for():
    found = last_token_residuals(refusing_model(), uneven(), PAD)
    assert found.rows is None
    for ask in (found.median, lambda: found.layer(1)):
        with pytest.raises(BulwarkError, match="were streamed"):
            ask()
    with pytest.raises(BulwarkError, match="no prompts"):
        last_token_residuals(refusing_model(), [], PAD)


def test_a_model_without_a_final_norm_is_told_what_to_set():
    model = refusing_model()
    del model.model.norm
    with pytest.raises(BulwarkError, match=r"Set directions\.final_norm to false"):
        last_token_residuals(model, uneven(), PAD, final_norm=True)


# At the first token


def test_log_probabilities_are_those_after_each_prompts_last_token():
    model, prompts = refusing_model(), uneven()
    for budget in (None, 1):
        found = first_token_log_probabilities(model, prompts, PAD, token_budget=budget)
        assert found.shape == (len(prompts), V)
        for row, prompt in zip(found, prompts, strict=True):
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
            assert torch.allclose(row, expected, atol=1e-5)


def test_kl_is_nothing_for_equal_logits_and_the_hand_value_from_the_base():
    base = torch.tensor([[0.5, 0.25, 0.25]]).log()
    edited = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert float(kl_divergence(base, base)) == 0.0
    assert float(kl_divergence(base, edited)) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    skewed = torch.tensor([[0.9, 0.05, 0.05]]).log()
    there = sum(p * math.log(p / q) for p, q in zip([0.5, 0.25, 0.25], [0.9, 0.05, 0.05], strict=True))
    back = sum(p * math.log(p / q) for p, q in zip([0.9, 0.05, 0.05], [0.5, 0.25, 0.25], strict=True))
    assert float(kl_divergence(base, skewed)) == pytest.approx(there, rel=1e-5)
    assert float(kl_divergence(skewed, base)) == pytest.approx(back, rel=1e-5)
    assert there != pytest.approx(back, rel=1e-2)


def test_kl_is_torchs_and_hardly_ever_below_zero():
    generator = torch.Generator().manual_seed(3)
    base = (5 * torch.randn(50, 200, generator=generator)).log_softmax(-1)
    near = (base + 1e-4 * torch.randn(50, 200, generator=generator)).log_softmax(-1)
    found = kl_divergence(base, near)
    assert float(found.min()) >= -1e-6
    expected = torch.nn.functional.kl_div(near, base, reduction="batchmean", log_target=True)
    assert float(found.mean()) == pytest.approx(float(expected), abs=1e-7)


def test_suppressed_tokens_do_not_make_kl_nan():
    logits = torch.tensor([[1.0, -torch.inf, 0.5]])
    base = logits.log_softmax(-1)
    assert float(kl_divergence(base, base)) == 0.0
    edited = torch.tensor([[1.0, 0.0, 0.5]]).log_softmax(-1)
    assert math.isfinite(float(kl_divergence(base, edited)))


def test_the_refusal_score_is_log_odds_of_the_tokens_mass():
    logs = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()
    found = refusal_score(logs, [0, 1])
    assert found.tolist() == pytest.approx([math.log(0.7 / 0.3), math.log(0.2 / 0.8)], rel=1e-5)


@pytest.mark.parametrize("gap", [14.0, 15.5, 16.0, 16.6, 17.0, 18.0, 40.0])
def test_the_refusal_score_is_a_number_however_sure_the_model_is(gap):
    """In float32 the probabilities of several tokens can add up to more than 1."""
    logits = torch.tensor([[0.0, -gap, -gap, -60.0], [-60.0, -60.0, -60.0, 0.0]])
    found = refusal_score(logits.log_softmax(-1), [0, 1, 2])
    assert torch.isfinite(found).all()
    assert float(found[0]) > 10
    assert float(found[1]) < -10
