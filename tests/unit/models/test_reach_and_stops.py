"""What ends an answer by the model's own files, and how long a prompt may be for what the model reads."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config

from bulwark.data.records import Turn
from bulwark.models import checkpoints, generation
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.open import open_model, prompt_limit
from bulwark.prompts.builder import PromptBuilder

ASK = Turn(role="instruction", text="Name the part.")
OPEN_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder of a small model; no turn of its template is closed."""
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = OPEN_TURNS
    model = tiny_aside(positions=64)
    checkpoints.save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def configured(folder, **content) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("as_list", [False, True])
def test_ids_of_the_generation_configuration_end_an_answer(folder, as_list):
    user = checkpoints.load_tokenizer(folder).convert_tokens_to_ids("<|user|>")
    ordinary = 77
    configured(folder, eos_token_id=[ordinary, user] if as_list else ordinary)
    asked = open_model(folder, "float32", device="cpu")
    assert {ordinary, user, asked.tokenizer.eos_token_id} == set(asked.builder.stop_ids)
    prompt = asked.builder.prompt((ASK,))
    forced = torch.full((V,), -100.0)
    forced[ordinary] = 100.0
    hook = asked.model.lm_head.register_forward_hook(lambda module, inputs, output: output + forced)
    answer = asked.generate([("1", prompt)], Decoding(max_new_tokens=8))[0]
    hook.remove()
    assert (answer.finish, answer.tokens, answer.response) == ("stop", 1, "")


def test_a_checkpoint_that_is_made_of_it_keeps_them(folder, tmp_path):
    configured(folder, eos_token_id=[77, 78])
    asked = open_model(folder, "float32", device="cpu")
    checkpoints.save_model(asked.model, asked.tokenizer, tmp_path / "child")
    assert {77, 78} <= set(open_model(tmp_path / "child", "float32", device="cpu").builder.stop_ids)


def test_without_one_the_defaults_of_config_json_count_only_if_they_are_added_tokens(folder):
    (folder / "generation_config.json").unlink()
    asked = open_model(folder, "float32", device="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 99}))
    assert 99 not in open_model(folder, "float32", device="cpu").builder.stop_ids
    assert asked.tokenizer.eos_token_id in asked.builder.stop_ids


LONG = (ASK, Turn(role="data", text="word " * 200))


@pytest.mark.parametrize(
    ("given", "new", "expected"),
    [(None, 0, 64), (512, 16, 48), (40, 16, 40), (512, 1024, 32), (None, 1024, 32), (9, 70, 9)],
)
def test_no_prompt_is_longer_than_the_model_reads(folder, caplog, given, new, expected):
    with caplog.at_level(logging.WARNING):
        asked = open_model(folder, "float32", device="cpu", max_tokens=given, new_tokens=new)
    assert (asked.positions, asked.builder.max_tokens) == (64, expected)
    assert ("reads 64 tokens, fewer than are asked for" in caplog.text) == ((given or 0) + new > 64)
    if expected > 30:
        prompt = asked.builder.prompt(LONG)
        assert (len(prompt.ids), prompt.truncated) == (expected, True)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_answers_end_where_the_positions_do(positions, monkeypatch):
    """Also beside longer prompts in one batch that nothing leaves, and where positions are learned (GPT-2)."""
    model = tiny_aside(positions=64)
    if positions == "learned":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
        ).eval()
        install(model, {"method": "aside"})
    builder = PromptBuilder(tiny_tokenizer("plain"), "chat", V)
    prompts = [builder.prompt((ASK,) * count) for count in (1, 2)]
    lengths = [len(prompt.ids) for prompt in prompts]
    monkeypatch.setattr(generation, "_select_rows", lambda cache, rows: False)
    together = generation.decode(model, prompts, max_new_tokens=1024, stop_ids=[V - 1], pad_id=0)
    alone = [generation.decode(model, [p], max_new_tokens=1024, stop_ids=[V - 1], pad_id=0)[0] for p in prompts]
    assert together == alone
    assert [len(row.ids) for row in together] == [64 - length for length in lengths]
    assert {row.finish for row in together} == {"length"}
    short = generation.decode(model, prompts, max_new_tokens=4, stop_ids=[V - 1], pad_id=0)
    assert [row.ids for row in short] == [row.ids[:4] for row in alone]


def test_a_model_without_positions_has_no_limit(caplog):
    assert prompt_limit(None, None, 16, "m") is None
    assert prompt_limit(None, 512, 10**6, "m") == 512
    assert not caplog.records
