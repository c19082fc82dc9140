"""Multiple choice has the log-likelihoods of lm-eval's own model for transformers, and reads each context once."""

from __future__ import annotations

import json

import pytest
import torch
from examinee_samples import V, examinee
from lm_eval.models.huggingface import HFLM
from tiny_tokenizers import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from bulwark.benchmarks import mmlu
from bulwark.evaluation import harness
from bulwark.models.embeddings import install

POSITIONS = 1024
# The header has no white space at its end, which HFLM would count as a part of the answer.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def model_of(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    install(model, {"method": "vanilla"})
    return model


def questions(count: int, prefix: str) -> list[dict]:
    return [
        {
            "id": f"{prefix}{number}",
            "question": f"Which of the {number} {prefix} trees is it?",
            "choices": [f"tree {number} of the park", "vote", "a meal plan for two", "the part"],
            "answer": number % 4,
            "subject": "anatomy",
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("format", ["letters", "continuation"])
def test_likelihoods_are_those_of_hflm(tmp_path, monkeypatch, format, template, shots):
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = CHAT
    tokenizer.pad_token = tokenizer.eos_token
    model = model_of(tokenizer)
    asked, examples = questions(6, "q"), questions(shots, "e") if shots else None
    config = mmlu._config(mmlu.Settings(format=format, template=template), "anatomy")

    def task():
        return harness.task_of("anatomy", config, asked, examples, shots)

    passes = []
    forward = model.model.forward

    def counted(*given, **named):
        passes.append(named["input_ids"].shape if named.get("input_ids") is not None else given[0].shape)
        return forward(*given, **named)

    monkeypatch.setattr(model.model, "forward", counted)
    rows = harness.answers(
        harness.Examined(examinee(tmp_path, model, tokenizer=tokenizer), template=template), [task()]
    )
    ours = [[value for value, _ in json.loads(rows[record["id"]]["response"])] for record in asked]
    greedy = [[flag for _, flag in json.loads(rows[record["id"]]["response"])] for record in asked]
    contexts = sum(rows for rows, width in passes if width > 30)
    assert contexts == len(asked)

    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5, max_length=POSITIONS)
    own = task()
    own.build_all_requests(apply_chat_template=template, chat_template=peer.apply_chat_template)
    theirs = peer.loglikelihood(own.instances, disable_tqdm=True)
    assert [value for of_item in ours for value in of_item] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [flag for of_item in greedy for flag in of_item] == [flag for _, flag in theirs]
