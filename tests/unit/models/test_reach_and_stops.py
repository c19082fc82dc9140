"""What ends an answer by the model's own files, and how long a prompt may be for what the model reads."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.errors import BulwarkError
from bulwark.models import checkpoints
from bulwark.models.decoding import Decoding
from bulwark.models.open import open_model, prompt_limit

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


def test_no_prompt_is_longer_than_the_model_reads(folder, caplog):
    long = (ASK, Turn(role="data", text="word " * 200))
    for given, new, expected in ((None, 0, 64), (512, 16, 48), (40, 16, 40)):
        with caplog.at_level(logging.WARNING):
            asked = open_model(folder, "float32", device="cpu", max_tokens=given, new_tokens=new)
        prompt = asked.builder.prompt(long)
        assert (len(prompt.ids), prompt.truncated) == (expected, True)
        assert (asked.positions, asked.builder.max_tokens) == (64, expected)
        assert ("512 tokens and 16 new ones" in caplog.text) == (given == 512)
        caplog.clear()
    with pytest.raises(BulwarkError, match="reads 64 tokens, so 64 new ones leave no room"):
        open_model(folder, "float32", device="cpu", new_tokens=64)


def test_answers_past_what_the_model_reads_are_told(folder, caplog):
    asked = open_model(folder, "float32", device="cpu")
    prompts = [("1", asked.builder.prompt((ASK,))), ("2", asked.builder.prompt((ASK, ASK, ASK)))]
    room = asked.positions - len(prompts[0][1].ids)
    with caplog.at_level(logging.WARNING):
        asked.generate(prompts, Decoding(max_new_tokens=room))
    assert "1 of 2 answers may run past the 64 tokens" in caplog.text


def test_a_model_without_positions_has_no_limit():
    assert prompt_limit(None, None, 16, "m") is None
    assert prompt_limit(None, 512, 10**6, "m") == 512
