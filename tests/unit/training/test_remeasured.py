"""What was saved is measured again: it is the trained model, or the job fails."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_causal_models import HIDDEN, tiny_model
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from training_samples import examples, settings, trained
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import steps
from bulwark.data.records import write_records
from bulwark.errors import BulwarkError
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.training import loop
from bulwark.training.checks import remeasured
from bulwark.training.finetuning import FineTuningSettings
from bulwark.training.loop import Trained


def model_of(method: str = "aside", **kind) -> nn.Module:
    model = tiny_model(**kind)
    torch.manual_seed(1)
    install(model, {"method": method})
    return model


def again(folder, result: Trained, **changes) -> dict:
    """Save the result and measure it again."""
    checkpoints.save_model(result.model, tiny_tokenizer("chatml"), folder)
    return remeasured.measure_again(folder, result.model, result.judged, settings(**changes))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("aside", {}),
        ("ise", {"zero_stage": 3, "keep_best": True, "evaluate_every": 1, "learning_rate": 1.0}),
        ("aside", {"lora": {"rank": 2}}),
        ("ise", {"lora": {"rank": 2}, "learning_rate": 0.1, "keep_best": True, "evaluate_every": 1}),
        ("aside", {"precision": "bfloat16"}),
        ("aside", {"precision": "bfloat16", "lora": {"rank": 2}, "learning_rate": 0.1}),
        ("aside", {"packing": True, "max_tokens": 30}),
        ("vanilla", {"optimizer": "schedulefree_adamw", "schedule": "constant"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_is_saved_has_the_loss_that_was_measured(method, changes, tied, tmp_path):
    kind = {"dtype": torch.bfloat16} if "precision" in changes else {}
    result = trained(model_of(method, tied=tied, **kind), tmp_path, **changes)
    record = again(tmp_path / "saved", result, **changes)
    assert record["examples"] == 6
    chosen = dict(result.report.validation)[result.report.weights_of_step]
    assert record["trained"] == pytest.approx(chosen, rel=1e-5)  # six examples are all there are
    assert record["saved"] == pytest.approx(record["trained"], abs=record["tolerance"] / 2)
    if "precision" not in changes:
        assert record["saved"] == pytest.approx(record["trained"], abs=1e-5)


def test_no_weights_stay_in_memory_while_the_saved_ones_are_loaded(tmp_path, monkeypatch):
    result = trained(model_of(), tmp_path)
    load = checkpoints.load_model

    def watched(*arguments, **options):
        assert all(parameter.is_meta for parameter in result.model.parameters())
        return load(*arguments, **options)

    monkeypatch.setattr(checkpoints, "load_model", watched)
    again(tmp_path / "saved", result)


def test_at_most_so_many_examples_are_measured(tmp_path):
    model = model_of()
    result = loop.train(
        model,
        examples(14),
        examples(100, seed=1),
        settings(),
        seed=0,
        state=tmp_path / "training",
        fingerprint={},
        pad_id=0,
    )
    record = again(tmp_path / "saved", result)
    assert record["examples"] == remeasured.EXAMPLES < 100
    assert record["saved"] == pytest.approx(record["trained"], abs=1e-5)
    assert abs(record["trained"] - result.report.validation[-1][1]) > 1e-4  # the longest examples are no average


def test_without_validation_it_is_judged_on_what_it_was_trained_on(tmp_path):
    arguments = {"seed": 0, "state": tmp_path / "training", "fingerprint": {}, "pad_id": 0}
    result = loop.train(model_of(), examples(14), [], settings(lora={"rank": 2}), **arguments)
    assert result.report.validation == []
    record = again(tmp_path / "saved", result, lora={"rank": 2})
    assert record["examples"] == 14
    assert record["saved"] == pytest.approx(record["trained"], abs=1e-5)


def spoilt_by(name: str, result: Trained) -> None:
    model = result.model
    with torch.no_grad():
        if name == "another angle":
            role_embedding_of(model).angle = 0.3
        elif name == "a lost vector":
            model.get_output_embeddings().weight[5:9] = 0
        elif name == "a doubled adapter":
            for layer in model.model.layers:
                layer.self_attn.v_proj.weight.mul_(2)
        else:
            model.model.norm.weight.fill_(math.nan)


@pytest.mark.parametrize("spoilt", ["another angle", "a lost vector", "a doubled adapter", "nan"])
def test_what_is_not_the_trained_model_fails_the_job(spoilt, tmp_path):
    result = trained(model_of(), tmp_path)
    spoilt_by(spoilt, result)
    with pytest.raises(
        BulwarkError, match=r"what was saved is not what was trained\..* has a loss of .* no checkpoint"
    ):
        again(tmp_path / "saved", result)


def test_an_adapter_on_a_tied_output_embedding_would_be_found(tmp_path, monkeypatch):
    """Were it not refused before: merging changes the input embedding, too."""

    def attach(model, lora):
        return get_peft_model(model, LoraConfig(r=lora.rank, target_modules=["lm_head"], task_type="CAUSAL_LM"))

    monkeypatch.setattr(loop, "attach_lora", attach)
    changes = {"lora": {"rank": 4}, "learning_rate": 0.1, "max_steps": 8}
    result = trained(model_of(tied=True), tmp_path, **changes)
    with pytest.raises(BulwarkError, match=r"train fewer of lora\.target_modules"):
        again(tmp_path / "saved", result, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the checkpoint `base` and records."""
    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, initializer_range=0.2, **sizes))
    install(model)
    checkpoints.save_model(model, tiny_tokenizer("chatml"), place / "base")
    (place / "base/preprocessor_config.json").write_text("{}")
    manifests.write_manifest(place / "base/checkpoint.json", {"template": "alpaca"})
    turns = [{"role": "instruction", "text": "Name a tree."}, {"role": "response", "text": "The oak."}]
    for split in ("train", "validation"):
        write_records(place / f"{split}.jsonl", [{"id": str(n), "turns": turns} for n in range(4)])
    return place


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_step_records_it_and_a_broken_way_to_the_disk_leaves_no_manifest(place, lora, tmp_path, monkeypatch):
    chosen = {"max_steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2, "lora": lora}
    chosen = FineTuningSettings(data="x", training=chosen)
    inputs = {split: str(place / f"{split}.jsonl") for split in ("train", "validation")}
    output = tmp_path / "x/checkpoint.json"
    job = Job("vanilla", {}, str(place / "base/checkpoint.json"), str(output), inputs, {"seed": 0}, "")
    record = steps.fine_tune(job, chosen, SimpleNamespace(embedding=lambda _: {"method": "ise"}))
    measured = record["measured_again"]
    assert measured["trained"] == pytest.approx(record["training"]["validation"][-1][1], rel=1e-5)
    json.dumps(record)
    assert record["carried"] == ["preprocessor_config.json"]
    assert (output.parent / "preprocessor_config.json").read_text() == "{}"

    save = checkpoints.save_model

    def broken(model, *arguments, **options):
        with torch.no_grad():
            model.get_input_embeddings().weight[:250] = 0
        save(model, *arguments, **options)

    monkeypatch.setattr(checkpoints, "save_model", broken)
    with pytest.raises(BulwarkError, match="what was saved is not what was trained"):
        steps.execute(Job("vanilla", chosen.model_dump(), *(job.parent, job.output, inputs), {"seed": 0}, ""))
    assert not output.exists()
