"""The front door: open a checkpoint, ask it."""

from __future__ import annotations

import pytest
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

import bulwark
from bulwark.cli import main
from bulwark.errors import BulwarkError, CheckpointError, ConfigurationError
from bulwark.miniature.tokenizer import build_tokenizer
from bulwark.models import checkpoints, manifests
from bulwark.models.assistant import Assistant
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.models.placing import spread
from bulwark.models.placing.loading import Loading
from bulwark.serving import server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ASIDE checkpoint of a tiny random model, with its manifest."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": "aside"})
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save_model(model, tiny_tokenizer("chatml"), folder)
    manifests.write_manifest(folder / "checkpoint.json", {"template": "alpaca", "weights": "."})
    return folder


@pytest.fixture(scope="module")
def assistant(folder) -> Assistant:
    return bulwark.load(folder, device="cpu")


def test_answer_and_answers_agree(assistant):
    pairs = [("Name the tree.", "The committee met."), ("Translate.", None), ("Write a plan.", "  ")]
    together = assistant.answers(pairs, max_new_tokens=8)
    assert together == [assistant.answer(*pair, max_new_tokens=8) for pair in pairs]
    assert assistant.answers(["Translate."], max_new_tokens=8) == [together[1]]
    assert all(isinstance(answer, str) for answer in together)
    assert len(set(together)) == 3


def test_data_is_not_an_instruction_to_it(assistant):
    prompt = assistant.builder.prompt([bulwark.data.records.Turn(role="data", text="Obey.")])
    assert max(prompt.ids) >= 2 * role_embedding_of(assistant.model).num_embeddings
    apart = assistant.answer("Name the tree.", "The committee met.", max_new_tokens=8)
    joined = assistant.answer("Name the tree. The committee met.", max_new_tokens=8)
    assert apart != joined


def test_system_and_sampling(assistant):
    plain = assistant.answer("Translate.", "naïve café", max_new_tokens=8)
    assert assistant.answer("Translate.", "naïve café", system="Be short.", max_new_tokens=8) != plain
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 8}
    sampled = [assistant.answer("Translate.", "naïve café", seed=seed, **options) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_template_is_the_manifests_or_the_callers(folder, assistant, tmp_path):
    by_file = bulwark.load(folder / "checkpoint.json", device="cpu")
    assert by_file.builder.digest == assistant.builder.digest
    chat = bulwark.load(str(folder), device="cpu", template="chat")
    assert chat.builder.digest != assistant.builder.digest
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, **TINY))
    model.save_pretrained(tmp_path)
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    assert bulwark.load(tmp_path, device="cpu").builder.digest == chat.builder.digest


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_prompt_that_does_not_fit_warns(assistant):
    with pytest.warns(UserWarning, match="1 of 1 prompts were cut to 248 tokens"):
        assistant.answer("Name the tree.", "The committee met. " * 100, max_new_tokens=8)
    with pytest.warns(UserWarning, match="1 of 1 prompts were cut to 128 tokens"):
        assistant.answer("Name the tree.", "The committee met. " * 100, max_new_tokens=900, max_prompt_tokens=900)


def test_words_that_the_tokenizer_does_not_know_are_told(tmp_path, capsys, monkeypatch):
    tokenizer = build_tokenizer(64)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
        )
    )
    install(model, {"method": "vanilla"})
    checkpoints.save_model(model, tokenizer, tmp_path)
    manifests.write_manifest(tmp_path / "checkpoint.json", {"template": "chat", "weights": "."})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = ["ask", str(tmp_path), "--max-new-tokens", "2", "--instruction"]
    assert main([*asked, "name the first name .", "--data", "ben greets Zaphod ."]) == 0
    told = capsys.readouterr()
    assert "bulwark: The model does not know" in told.err
    assert "Zaphod" in told.err
    assert "ben" not in told.err
    assert main([*asked, "name the first name ."]) == 0
    assert "does not know" not in capsys.readouterr().err


def test_the_commands_spread_a_model_as_jobs_do(folder, monkeypatch, capsys):
    """The CPU holds a model whole whatever is said; here is seen that it is said."""
    seen = []
    held = spread.load

    def load(*given):
        seen.append(given[3])
        return held(*given)

    def served(*given, loading, **more):
        seen.append(loading)
        raise BulwarkError("enough")

    monkeypatch.setattr(spread, "load", load)
    monkeypatch.setattr(server, "load", served)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ask = ["ask", str(folder), "--instruction", "Name the tree.", "--max-new-tokens", "1"]
    assert main([*ask, "--gpus", "2"]) == 0
    assert main(["serve", str(folder), "--port", "0", "--gpus", "3"]) == 1
    assert main(ask) == 0
    assert seen == [Loading(gpus=2), Loading(gpus=3), Loading()]
    assert main([*ask, "--gpus", "0"]) == 1
    assert "--gpus takes a whole number from 1" in capsys.readouterr().err


def test_wrong_use_is_explained(folder, assistant, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        bulwark.load(tmp_path / "none")
    with pytest.raises(CheckpointError):
        bulwark.load(tmp_path)
    with pytest.raises(ConfigurationError, match="max_new_tokens"):
        assistant.answer("Translate.", max_tokens=3)
    with pytest.raises(BulwarkError, match="alpaca"):
        bulwark.load(folder, device="cpu", template="alpca")
