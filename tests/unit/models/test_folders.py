"""What lies in a model's folder: one set of weights, or an error that names the files; and what goes along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_causal_models import tiny_model, tokens
from tiny_tokenizers import tiny_tokenizer

from bulwark.errors import CheckpointError
from bulwark.models import manifests
from bulwark.models.checkpoints import load_model, load_tokenizer, save_model
from bulwark.models.folders.carried import carry_on
from bulwark.models.folders.weights import weights_of
from bulwark.models.open import open_model
from bulwark.models.origin import adopt_model

IDS, _ = tokens(1, 9)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A user's folder as transformers writes it."""
    tiny_model().save_pretrained(tmp_path / "mine")
    tiny_tokenizer("chatml").save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def adopted(folder: Path) -> dict:
    adopt_model(folder, "chat", folder.parent / "model/model.json")
    return manifests.read_manifest(folder.parent / "model/model.json")


def refused(folder: Path, told: str) -> None:
    """Adopting and opening end with this message, and nothing is written."""
    with pytest.raises(CheckpointError, match=told):
        adopted(folder)
    assert not (folder.parent / "model/model.json").exists()
    with pytest.raises(CheckpointError, match=told):
        load_model(folder)
    with pytest.raises(CheckpointError, match=told):
        open_model(folder, "float32")


def adapted(folder: Path):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny_model(), config)
    model.peft_config["default"].base_model_name_or_path = "some/base"
    model.save_pretrained(folder)
    return model


def test_an_adapter_left_beside_merged_weights_is_told(folder):
    merged = adapted(folder).merge_and_unload()
    merged.save_pretrained(folder)
    refused(folder, r"an adapter \(adapter_config\.json, adapter_model\.safetensors\).* hold it already, remove these")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    assert adopted(folder)
    assert torch.equal(load_model(folder)(IDS).logits, merged.eval()(IDS).logits)


@pytest.mark.parametrize("left", ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"])
def test_one_file_of_an_adapter_is_enough(folder, left):
    (folder / left).write_text("{}")
    refused(folder, rf"beside whole weights lies an adapter \({left}\)".replace(".", r"\."))


@pytest.mark.parametrize("config", [True, False])
def test_a_folder_with_an_adapter_only_names_its_base(config, tmp_path):
    folder = tmp_path / "mine"
    adapted(folder)
    tiny_tokenizer("chatml").save_pretrained(folder)
    if config:
        tiny_model().config.save_pretrained(folder)
    refused(folder, r"an adapter only .* lies elsewhere \(some/base\)\. Merge it .*merge_and_unload")


def test_a_model_with_an_adapter_on_it_is_not_saved(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(CheckpointError, match="merge the adapter first"):
        save_model(model, tiny_tokenizer("chatml"), tmp_path / "saved")


def bin_of(folder: Path, **changes) -> None:
    torch.save(load_file(folder / "model.safetensors") | changes, folder / "pytorch_model.bin")


def test_two_formats_of_the_same_weights_are_one_model(folder):
    bin_of(folder)
    assert adopted(folder)
    assert weights_of(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize("what", ["value", "shape", "names"])
def test_two_formats_of_other_weights_are_told(folder, what):
    name = "model.norm.weight"
    if what == "names":
        torch.save({"other": torch.ones(3)}, folder / "pytorch_model.bin")
    else:
        bin_of(folder, **{name: torch.full((16 if what == "value" else 3,), 0.5)})
    told = "no tensor in common" if what == "names" else name.replace(".", r"\.")
    refused(folder, rf"model\.safetensors and pytorch_model\.bin hold different weights \(.*{told}.*Remove the ones")


def test_the_comparison_of_formats_is_made_once(folder):
    bin_of(folder)
    adopted(folder)
    bin_of(folder, **{"model.norm.weight": torch.full((16,), 0.5)})  # the manifest tells of this change, see its tests
    assert weights_of(folder, compare=False) == [folder / "model.safetensors"]


def shards(folder: Path, size: str) -> None:
    tiny_model().save_pretrained(folder, max_shard_size=size)


def test_two_sets_of_shards_are_told(folder):
    (folder / "model.safetensors").unlink()
    shards(folder, "8KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    named = sorted(set(index["weight_map"].values()))
    assert [path.name for path in weights_of(folder)] == named
    assert len(named) > 1
    assert adopted(folder)
    shutil.rmtree(folder.parent / "model")
    shutil.copy(folder / named[0], folder / "model-00001-of-00009.safetensors")
    refused(folder, r"model-00001-of-00009\.safetensors look\(s\) like weights, .* other shards")


def test_a_whole_file_beside_shards_is_told(folder):
    whole = (folder / "model.safetensors").read_bytes()
    shards(folder, "8KB")
    (folder / "model.safetensors").write_bytes(whole)
    refused(folder, r"two sets of weights, model\.safetensors and the shards of model\.safetensors\.index\.json")


@pytest.mark.parametrize("twin", ["model-q4.safetensors", "gptq_model-4bit.safetensors", "model.int8.bin"])
def test_a_quantised_twin_is_told(folder, twin):
    save_file({"x": torch.ones(2)}, folder / twin)
    refused(
        folder, f"{twin} look.* the model is read from model.safetensors: .* a quantised twin".replace(".s", r"\.s")
    )


@pytest.mark.parametrize("other", ["consolidated.safetensors", "openvino_model.bin", "model.gguf", "optimizer.bin"])
def test_other_files_and_formats_are_nobody_s_weights(folder, other):
    (folder / other).write_bytes(b"x")
    assert [path.name for path in weights_of(folder)] == ["model.safetensors"]


BESIDE = {
    "preprocessor_config.json": '{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}}',
    "processor_config.json": '{"processor_class": "Gemma3Processor", "image_seq_length": 4}',
    "video_preprocessor_config.json": "{}",
    "chat_template.json": '{"chat_template": ""}',
    "LICENSE": "Of the parent.",
    "USE_POLICY.md": "Nothing bad.",
    "tokenizer.model": "pieces",
    "modeling_mine.py": "pass",
}
NOT_CARRIED = ("README.md", "model.gguf", "old.safetensors", ".gitattributes", "special_tokens_map.json")


def test_what_lies_beside_the_weights_goes_along_and_on(folder):
    for name, text in BESIDE.items():
        (folder / name).write_text(text)
    for name in NOT_CARRIED:
        (folder / name).write_text("{}")
    adopted(folder)
    results = folder.parent
    base = manifests.start_recipe(results / "model/model.json", results / "base/checkpoint.json", {"recipe": "base"})
    assert base["kind"] == "base"
    first = carry_on(results / "base/checkpoint.json", results / "one")
    assert set(first) == set(BESIDE)
    save_model(load_model(results / "base"), tiny_tokenizer("chatml"), results / "one")
    for name in ("analysis.jsonl", "summary.json"):  # what the step records is its own
        (results / "one" / name).write_text("{}")
    content = {"kind": "sft", "template": "chat", "carried": first}
    listed = manifests.write_manifest(results / "one/checkpoint.json", content)["files"]
    assert set(BESIDE) < {entry["name"] for entry in listed}
    (results / "two").mkdir()
    (results / "two/LICENSE").write_text("of an earlier attempt")
    assert carry_on(results / "one/checkpoint.json", results / "two") == first
    for name, text in BESIDE.items():
        assert (results / "two" / name).read_text() == text
    assert {path.name for path in (results / "two").iterdir()} == set(BESIDE)


def test_a_checkpoint_adopted_as_a_base_model_gives_what_it_was_given(folder):
    manifests.write_manifest(folder / "checkpoint.json", {"kind": "sft", "template": "chat", "carried": ["LICENSE"]})
    for name in ("LICENSE", "analysis.jsonl"):
        (folder / name).write_text("x")
    adopted(folder)
    assert carry_on(folder.parent / "model/model.json", folder.parent / "next") == ["LICENSE"]


def test_the_files_come_through_links_as_in_the_hub_s_cache(folder):
    (folder.parent / "blob").write_text("{}")
    (folder / "preprocessor_config.json").symlink_to(folder.parent / "blob")
    adopted(folder)
    assert carry_on(folder.parent / "model/model.json", folder.parent / "next") == ["preprocessor_config.json"]
    assert not (folder.parent / "next/preprocessor_config.json").is_symlink()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"eos_token_id": [1, 4],}', "not readable as JSON"),  # a comma too many, from adding one by hand
        ('{"eos_token_id": "</s>"}', r'eos_token_id: "</s>" is no id of the model\'s vocabulary'),
        ('{"eos_token_id": [3, 99999]}', "eos_token_id: 99999 is no id"),
        ('{"eos_token_id": -1}', "eos_token_id: -1 is no id"),
        ('{"eos_token_id": true}', "eos_token_id: true is no id"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_a_generation_configuration_that_transformers_would_pass_over_is_refused(folder, written, told):
    (folder / "generation_config.json").write_text(written)
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: .*{told}"):
        load_model(folder)


def test_stop_strings_are_told(folder, caplog):
    (folder / "generation_config.json").write_text('{"eos_token_id": [3], "stop_strings": ["###"]}')
    load_model(folder)
    assert "generation_config.json: stop_strings are not used" in caplog.text


def test_a_processor_s_chat_template_is_read_and_a_misnamed_one_is_refused(folder):
    template = load_tokenizer(folder).chat_template
    jinja = folder / "chat_template.jinja"
    assert jinja.read_text() == template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "another"}))
    assert load_tokenizer(folder).chat_template == template  # the tokenizer's own comes first
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    jinja.rename(folder / "chat_template.jinja2")
    assert load_tokenizer(folder).chat_template == template
    (folder / "chat_template.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r'chat_template\.json: there is no text under "chat_template"'):
        load_tokenizer(folder)
    (folder / "chat_template.json").unlink()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja2: .*Name it chat_template\.jinja"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja2").unlink()
    assert load_tokenizer(folder).chat_template is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "cannot be loaded: .*foo"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"cannot be loaded \(its weights are .* gptq"),
    ],
)
def test_a_model_that_transformers_cannot_build_is_named(folder, changes, told):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=rf"mine: the model {told}"):
        load_model(folder)
