"""A checkpoint as an ordinary model: the same logits without any code of ours, and never a role's id as an answer."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_causal_models import V, tiny_model, tokens
from tiny_tokenizers import word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bulwark import cli
from bulwark.errors import CheckpointError
from bulwark.models.checkpoints import load_model, save_model
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.serving import plain

ASIDE = {"method": "aside"}
FOUR = {"method": "aside", "roles": ["system", "instruction", "tool", "data"]}
METHODS = {
    "aside": ASIDE,
    "left": ASIDE | {"direction": "left", "response_role": "instruction"},
    "angle": ASIDE | {"alpha": 0.7},
    "learned": ASIDE | {"learned": True},
    "shifted": ASIDE | {"linear_shift": True},
    "four": FOUR,
    "ise": {"method": "ise"},
    "ise four": {"method": "ise", "roles": FOUR["roles"]},
}
TIED = {"llama": False, "qwen2": True, "qwen3": False, "mistral": True, "gemma3": True}


def checkpoint(folder, family: str, description: dict, dtype=torch.float32):
    model = tiny_model(family, tied=TIED[family], dtype=dtype)
    embedding = install(model, description)
    if embedding.role_shift is not None:  # large enough to matter
        torch.nn.init.normal_(embedding.role_shift, std=0.5)
    for name, weight in model.named_parameters():
        if "norm" in name:  # as trained ones, not all alike
            torch.nn.init.normal_(weight, mean=0.0 if family == "gemma3" else 1.0, std=0.2)
    save_model(model, word_tokenizer(V), folder)
    return folder


def asked(folder, rows: int = 8, length: int = 20):
    """Ids with roles, and our own model's logits."""
    model = load_model(folder, dtype="auto")
    plain_ids, _ = tokens(rows, length)
    count = 1 + len(role_embedding_of(model).roles)
    ids = plain_ids + V * torch.randint(0, count, plain_ids.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return ids, model(ids).logits, model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_an_ordinary_model_gives_the_same_logits(tmp_path, family, method):
    folder = checkpoint(tmp_path / "ours", family, METHODS[method])
    plain.export(folder, tmp_path / "plain")
    ids, ours, _ = asked(folder)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    assert type(model).__module__.startswith("transformers.models.")
    with torch.no_grad():
        theirs = model(ids).logits
    assert torch.allclose(theirs[..., :V], ours, rtol=0, atol=1e-5 * float(ours.abs().max()))
    # as probabilities, too: those of all other ids are 0
    assert torch.allclose(torch.log_softmax(theirs, -1)[..., :V], torch.log_softmax(ours, -1), atol=3e-5)
    assert float(torch.softmax(theirs, -1)[..., V:].sum()) == 0.0


@pytest.mark.parametrize("family", TIED)
def test_answers_are_the_same_plain_ids(tmp_path, family):
    folder = checkpoint(tmp_path / "ours", family, ASIDE)
    plain.export(folder, tmp_path / "plain")
    ids, _, ours = asked(folder, rows=4, length=9)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    answers = [model.generate(ids, **options)[:, ids.shape[1] :] for model in (ours, theirs)]
    assert torch.equal(*answers)
    torch.manual_seed(0)
    sampled = theirs.generate(ids, **options | {"do_sample": True, "temperature": 50.0, "top_k": 0})
    assert int(sampled[:, ids.shape[1] :].max()) < V, "not even where all answers are about equally likely"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_constant_and_the_smaller_epsilon_make_up_the_one_that_was_there(tmp_path, family):
    """k·a² + ε'·(d + k) = ε·d, where a is what every token has in the k coordinates that were added."""
    folder = checkpoint(tmp_path / "ours", family, ASIDE)
    plain.export(folder, tmp_path / "plain")
    ids, _, ours = asked(folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    hidden = ours.config.hidden_size
    with torch.no_grad():
        added = theirs.get_input_embeddings()(ids)[..., hidden:].double()
    constant, wider = float(added.mean()), hidden + added.shape[-1]
    torch.testing.assert_close(added, torch.full_like(added, constant), rtol=1e-5, atol=0)
    made_up = (wider - hidden) * constant**2 + theirs.config.rms_norm_eps * wider
    assert made_up == pytest.approx(ours.config.rms_norm_eps * hidden, rel=1e-4)


def test_without_its_roles_the_model_is_another_one(tmp_path):
    """What the test above compares depends on the roles: plain ids in their place give other logits."""
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE)
    plain.export(folder, tmp_path / "plain")
    ids, ours, _ = asked(folder)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    with torch.no_grad():
        without = model(ids % V).logits[..., :V]
    assert float((without - ours).abs().max()) > 0.05 * float(ours.abs().max())


def test_the_folder_is_an_ordinary_one_that_says_how_to_use_it(tmp_path):
    folder = checkpoint(tmp_path / "ours", "llama", FOUR)
    plain.export(folder, tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"config.json", "tokenizer_config.json", "README.md", "roles.json"} <= names
    assert not any(name.endswith(".py") for name in names)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["vocab_size"] == 5 * V
    assert not {"auto_map", "role_embedding", "base_architectures", "base_model_type"} & set(config)
    roles = json.loads((tmp_path / "plain" / "roles.json").read_text())
    assert roles["rows"] == V
    assert roles["numbers"] == {"system": 1, "instruction": 2, "tool": 3, "data": 4}
    readme = (tmp_path / "plain" / "README.md").read_text()
    for part in (f"V = {V}", "id + V * number", "data 4", "without its defense"):
        assert part in readme
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer("w4 w7")["input_ids"] == [4, 7]


def test_bfloat16_stays_bfloat16(tmp_path):
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE, dtype=torch.bfloat16)
    difference = plain.export(folder, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert difference < 0.05
    # the rows of a quarter turn are exact
    rows = model.get_input_embeddings().weight[:, :16]
    assert torch.equal(rows[2 * V :, 0::2], rows[V : 2 * V, 1::2])
    assert torch.equal(rows[2 * V :, 1::2], -rows[V : 2 * V, 0::2])


def test_what_has_no_rmsnorm_is_refused(tmp_path):
    model = tiny_model("gpt_neox")
    install(model, ASIDE)
    save_model(model, word_tokenizer(V), tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"no RMSNorm.*bulwark serve"):
        plain.export(tmp_path / "ours", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_what_is_ordinary_already_is_refused(tmp_path):
    save_model(_vanilla(), word_tokenizer(V), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="ordinary model already"):
        plain.export(tmp_path / "ours", tmp_path / "plain")


def _vanilla():
    model = tiny_model("llama")
    install(model)
    return model


def test_quantised_weights_are_refused(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE)
    model = load_model(folder)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    monkeypatch.setattr(plain, "load_model", lambda *_, **__: model)
    with pytest.raises(CheckpointError, match=r"quantised.*quantise the export"):
        plain.export(folder, tmp_path / "plain")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE)
    with pytest.raises(CheckpointError, match="not empty"):
        plain.export(folder, folder)


def test_an_export_that_computes_something_else_is_an_error(tmp_path, monkeypatch):
    """Here because a block would read the coordinates that were added."""
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE)
    monkeypatch.setattr(plain, "_padded", lambda tensor, shape: torch.full(shape, 0.1))
    with pytest.raises(CheckpointError, match=r"other logits.*bulwark serve"):
        plain.export(folder, tmp_path / "plain")


def test_the_command_says_what_was_made(tmp_path, capsys):
    folder = checkpoint(tmp_path / "ours", "llama", ASIDE)
    assert cli.main(["export", str(folder), "--for", "plain", str(tmp_path / "plain")]) == 0
    assert "an ordinary model" in capsys.readouterr().out
    assert cli.main(["export", str(folder), "--for", "plain", str(tmp_path / "plain")]) == 1
    assert "not empty" in capsys.readouterr().err
