"""Memory that runs out: every pass halves its batches and gives what it gives with memory to spare."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_tokenizers import SENTENCES, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark.abliteration.measure.measuring import first_token_log_probabilities
from bulwark.data.records import Turn
from bulwark.errors import BulwarkError
from bulwark.models import batching
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.likelihoods import Continuation
from bulwark.models.open import LanguageModel
from bulwark.models.residuals import last_token_residuals
from bulwark.prompts.builder import PromptBuilder
from bulwark.steering.screening.detectors import score_rows
from bulwark.steering.screening.settings import DetectorSettings
from bulwark.steering.vectors.extraction import Example, pooled_sums
from bulwark.steering.vectors.projections import project_texts

WORDS = SENTENCES[3].split()


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    install(model, {"method": "aside"})
    tokenizer = tiny_tokenizer("chatml")
    return LanguageModel(model, tokenizer, "chat", PromptBuilder(tokenizer, "chat", 500))


def turns(number: int) -> list[Turn]:
    return [
        Turn(role="instruction", text="Name " + WORDS[number]),
        Turn(role="data", text=" ".join(WORDS[: 1 + 5 * number % 13])),
    ]


def prompts(lm: LanguageModel) -> list:
    return [lm.builder.prompt(turns(number)) for number in range(9)]


def examples(lm: LanguageModel) -> list:
    return [
        lm.builder.example([*turns(number), Turn(role="response", text=" ".join(WORDS[number : number + 4]))])
        for number in range(9)
    ]


def generated(lm: LanguageModel) -> list:
    lm.budget = None
    keyed = [(str(number), prompt) for number, prompt in enumerate(prompts(lm))]
    return [(one.response, one.tokens, one.finish) for one in lm.generate(keyed, Decoding(max_new_tokens=6))]


def scored(lm: LanguageModel) -> list:
    asked = [Continuation(str(n), one.ids, [3 + n]) for n, one in enumerate(prompts(lm))]
    return [torch.tensor([one.value for one in lm.log_likelihoods(asked)])]


def first_tokens(lm: LanguageModel) -> list:
    return [first_token_log_probabilities(lm.model, prompts(lm), lm.builder.pad_id)]


def residuals(lm: LanguageModel) -> list:
    found = last_token_residuals(lm.model, prompts(lm), lm.builder.pad_id, keep=True)
    return [found.mean, found.variance, found.rows]


def extracted(lm: LanguageModel) -> list:
    pairs = [Example(prompt, number % 2, number // 2 % 2) for number, prompt in enumerate(examples(lm))]
    return list(pooled_sums(lm.model, pairs, lm.builder.pad_id))


def projected(lm: LanguageModel) -> list:
    found = project_texts(lm.model, examples(lm), torch.eye(32)[:2], layer=1, pad_id=lm.builder.pad_id)
    return [torch.tensor([one.response + one.prompt for one in found])]


def detected(lm: LanguageModel) -> list:
    vector = torch.linspace(-1, 1, 32)
    rows = score_rows(lm.model, examples(lm), 1, vector, DetectorSettings(batch_size=9), pad_id=lm.builder.pad_id)
    assert [row["row_id"] for row in rows] == list(range(9))
    return [torch.tensor([[row[name] for name in ("loss_nat", "delta_mean", "D1", "p_cur")] for row in rows])]


PASSES = [generated, scored, first_tokens, residuals, extracted, projected, detected]


@pytest.mark.parametrize("ask", PASSES)
def test_every_pass_halves_its_batches_when_memory_runs_out(language_model, ask, caplog):
    expected, tried = ask(language_model), []

    def little_memory(_, args):
        rows = len(args[0])
        if args[0].shape[1] > 1:
            tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = language_model.model.get_input_embeddings().register_forward_pre_hook(little_memory)
    try:
        with caplog.at_level(logging.WARNING, logger="bulwark"):
            found = ask(language_model)
    finally:
        handle.remove()
    assert tried[:3] == [9, 4, 2]
    assert "Out of memory with 9 rows" in caplog.text
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other


@pytest.mark.parametrize("ask", PASSES)
def test_a_single_item_that_does_not_fit_is_named(language_model, ask):
    def no_memory(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    handle = language_model.model.get_input_embeddings().register_forward_pre_hook(no_memory)
    try:
        with pytest.raises(BulwarkError, match=r"Out of memory with a single .* of \d+ tokens.*Use bfloat16"):
            ask(language_model)
    finally:
        handle.remove()


def test_a_halved_budget_holds_for_later_calls(language_model):
    tried = []

    def work(items):
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    budget = batching.Budget(70)
    for _ in range(2):
        batching.in_batches([10] * 7, work, budget, str)
    assert tried == [7, 3, 3, 1, 3, 3, 1]


def test_longest_first_in_a_stable_order():
    batches = []
    batching.in_batches([2, 5, 2, 5, 1], batches.append, 10, str)
    assert batches == [[1, 3], [0, 2, 4]]


def test_another_error_is_passed_on():
    def work(_):
        raise RuntimeError("another fault")

    with pytest.raises(RuntimeError, match="another fault"):
        batching.in_batches([1], work, 1, str)
