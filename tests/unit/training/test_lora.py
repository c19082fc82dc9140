"""Adapters: what is trained beside them, what they may stand on, and that the merged model is what was measured."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_causal_models import tiny_model
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from training_samples import trained
from transformers import Phi3Config, Phi3ForCausalLM

from bulwark.errors import BulwarkError
from bulwark.models.checkpoints import load_model, save_model
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.training.lora import attach_lora
from bulwark.training.settings import LoraSettings

METHODS = {
    "ise": ({"method": "ise"}, ["role_shift"]),
    "learned": ({"method": "aside", "learned": True}, ["rotation"]),
    "linear_shift": ({"method": "aside", "linear_shift": True}, ["role_shift"]),
    "both": ({"method": "aside", "learned": True, "linear_shift": True}, ["role_shift", "rotation"]),
}


def model_of(description: dict, **kind) -> nn.Module:
    model = tiny_model(**kind)
    torch.manual_seed(1)
    install(model, description)
    return model


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"zero_stage": 3}, {"keep_best": True, "evaluate_every": 1}, {"precision": "bfloat16"}],
    ids=str,
)
def test_the_parameters_of_the_method_are_trained_and_saved(name, changes, tmp_path):
    description, parts = METHODS[name]
    kind = {"dtype": torch.bfloat16} if "precision" in changes else {}
    before = role_embedding_of(model_of(description, **kind))
    result = trained(model_of(description, **kind), tmp_path, lora={"rank": 2}, **changes)
    after = role_embedding_of(result.model)
    for part in parts:
        assert not torch.equal(getattr(after, part), getattr(before, part)), part
    assert torch.equal(after.weight, before.weight)
    own = sum(getattr(before, part).numel() for part in parts)
    plain = trained(model_of({"method": "aside"}, **kind), tmp_path / "plain", lora={"rank": 2}, **changes).report
    assert result.report.trainable_parameters == plain.trainable_parameters + own

    save_model(result.model, tiny_tokenizer("chatml"), tmp_path / "saved")
    saved = role_embedding_of(load_model(tmp_path / "saved", dtype="auto"))
    for part in parts:
        assert torch.equal(getattr(saved, part), getattr(after, part)), part


def test_the_rest_of_the_model_stays_frozen(tmp_path):
    model = model_of({"method": "ise"})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = trained(model, tmp_path, lora={"rank": 2, "target_modules": ("q_proj",)}).model.state_dict()
    changed = {name for name, weight in merged.items() if not torch.equal(weight, before[name])}
    queries = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert changed == {"model.embed_tokens.role_shift"} | queries


@pytest.mark.parametrize(
    ("family", "tied", "targets", "told"),
    [
        (
            "llama",
            True,
            ("embed_tokens",),
            r"embed_tokens is no linear module \(model\.embed_tokens is a RoleEmbedding",
        ),
        (
            "llama",
            False,
            ("q_proj", "embed_tokens"),
            "Adapters go on linear modules; this model has .*q_proj.* lora out",
        ),
        ("llama", False, ("norm",), r"norm is no linear module \(model\.norm is a LlamaRMSNorm\)"),
        ("llama", False, ("mlp",), r"mlp is no linear module \(model\.layers\.0\.mlp is a LlamaMLP\)"),
        (
            "llama",
            True,
            ("lm_head", "q_proj"),
            r"lm_head shares its weight with model\.embed_tokens.*Leave lm_head out",
        ),
        ("gemma3", True, ("lm_head",), "lm_head shares its weight with .*or train without lora"),
        ("gpt_neox", True, ("lm_head",), "lm_head shares its weight"),
        ("llama", False, ("proj",), r"the model has no proj\. Adapters go on linear modules"),
    ],
)
def test_modules_that_cannot_carry_adapters_are_told_before_training(family, tied, targets, told, tmp_path):
    with pytest.raises(BulwarkError, match=told):
        trained(model_of({"method": "aside"}, family=family, tied=tied), tmp_path, lora={"target_modules": targets})
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("targets", [("lm_head", "q_proj"), ("self_attn.q_proj", "layers.1.mlp.up_proj")])
def test_an_output_embedding_of_its_own_and_dotted_names_are_fine(targets, tmp_path):
    model = model_of({"method": "aside"})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = trained(model, tmp_path, lora={"rank": 2, "target_modules": targets}).model.state_dict()
    changed = {name for name, weight in merged.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.removesuffix(".weight").endswith(targets)}


def test_a_warning_of_peft_that_nobody_can_act_on_does_not_reach_the_log(tmp_path):
    """Where peft no longer asks for the old name, this fails, and the filter in `logs` can go."""
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing") as told:
        attach_lora(tiny_model(), LoraSettings())
    code = "import sys, warnings; from bulwark.logs import log_to; log_to(sys.argv[1])\n"
    code += "for text in sys.argv[2:]: warnings.warn(text, FutureWarning)"
    told = [str(warning.message) for warning in told if "is_gradient" in str(warning.message)]
    log = tmp_path / "job.log"
    subprocess.run([sys.executable, "-c", code, str(log), *told, "another warning"], check=True)
    assert "another warning" in log.read_text()
    assert "is_gradient_checkpointing" not in log.read_text()


@pytest.mark.parametrize(
    ("named", "held"),
    [
        (("q_proj", "k_proj", "v_proj"), {"qkv_proj"}),
        (("q_proj", "v_proj", "down_proj", "up_proj"), {"qkv_proj", "down_proj", "gate_up_proj"}),
        (("qkv_proj", "o_proj"), {"qkv_proj", "o_proj"}),
    ],
)
def test_the_name_of_a_part_stands_for_the_matrix_that_holds_it(named, held, caplog):
    """Phi-3 and 4 hold queries, keys and values as one matrix, and so the two that an MLP begins with."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
    model = Phi3ForCausalLM(Phi3Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
    adapted = attach_lora(model, LoraSettings(rank=2, target_modules=named))
    found = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in adapted.named_parameters() if ".lora_A." in name
    }
    assert found == held
    joined = held & {"qkv_proj", "gate_up_proj"} - set(named)
    told = [record.getMessage() for record in caplog.records if "lora.target_modules" in record.getMessage()]
    assert len(told) == len(joined)
    assert all(any(f"as one matrix, {whole};" in line for line in told) for whole in joined)


def test_parts_that_a_model_holds_by_themselves_are_taken_as_they_are():
    adapted = attach_lora(tiny_model("llama"), LoraSettings(rank=2, target_modules=("q_proj", "up_proj")))
    names = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in adapted.named_parameters() if ".lora_A." in name
    }
    assert names == {"q_proj", "up_proj"}
