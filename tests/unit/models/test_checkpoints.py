"""Checkpoint folders: the same model after saving and loading, with and without bulwark; broken folders are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_causal_models import FAMILIES, V, tiny_model, tokens
from tiny_tokenizers import word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bulwark.errors import CheckpointError
from bulwark.models import embeddings
from bulwark.models.checkpoints import load_model, load_tokenizer, save_model
from bulwark.models.embeddings import RoleEmbedding, install, role_embedding_of
from bulwark.models.manifests import write_manifest

METHODS = {
    "vanilla": {"method": "vanilla"},
    "ise": {"method": "ise"},
    "aside": {"method": "aside"},
    "everything": {
        "method": "aside",
        "alpha": 0.7,
        "direction": "left",
        "learned": True,
        "linear_shift": True,
        "response_role": "instruction",
    },
}
IDS, ROLES = tokens(2, 9)
ENCODED = IDS + V * ROLES


def tokenizer():
    return word_tokenizer(V)


def saved(folder: Path, description=None, **model) -> tuple[Path, torch.Tensor]:
    """A folder with a tiny model, and its logits for ENCODED."""
    model = tiny_model(**model)
    install(model, description or METHODS["aside"])
    save_model(model, tokenizer(), folder)
    return folder, model(ENCODED).logits.detach()


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_equal_after_loading(tmp_path, family, tied, dtype):
    for name, description in METHODS.items():
        folder, logits = saved(tmp_path / name, description, family=family, tied=tied, dtype=getattr(torch, dtype))
        model = load_model(folder, dtype=dtype)
        assert torch.equal(model(ENCODED).logits, logits), name
        assert type(model) is type(tiny_model(family))
        assert role_embedding_of(model).description == embeddings.described(description)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        assert not model.training


@pytest.mark.parametrize("name", METHODS)
def test_a_second_round_trip_writes_the_same_folder(tmp_path, name):
    first, logits = saved(tmp_path / "first", METHODS[name])
    second = tmp_path / "second"
    save_model(load_model(first), load_tokenizer(first), second)
    assert torch.equal(load_model(second)(ENCODED).logits, logits)
    assert [f.name for f in sorted(second.iterdir())] == [f.name for f in sorted(first.iterdir())]
    for file in first.iterdir():
        assert (second / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_model_can_be_saved_over_the_folder_it_came_from(tmp_path):
    folder, logits = saved(tmp_path / "model")
    save_model(load_model(folder, dtype="auto"), load_tokenizer(folder), folder)
    assert torch.equal(load_model(folder)(ENCODED).logits, logits)


def test_vanilla_is_a_plain_folder(tmp_path):
    folder, logits = saved(tmp_path / "over", METHODS["aside"])
    model = load_model(folder)
    install(model, METHODS["vanilla"])
    plain = model(ENCODED).logits
    save_model(model, tokenizer(), folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"auto_map", "role_embedding"} & set(config)
    assert not (folder / embeddings.CODE_FILE).exists()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, plain)
    assert not torch.equal(plain, logits)


def test_config_tells_the_role_embedding(tmp_path):
    folder, _ = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["role_embedding"] == embeddings.described(METHODS["aside"])
    assert (config["model_type"], config["base_model_type"]) == (embeddings.MODEL_TYPE, "llama")
    assert (config["base_architectures"], config["hidden_size"], config["vocab_size"]) == (["LlamaForCausalLM"], 16, V)
    assert (folder / embeddings.CODE_FILE).read_text() == Path(embeddings.__file__).read_text()
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert "model.embed_tokens.weight" in load_file(folder / "model.safetensors")


def test_the_architecture_is_one_that_nothing_knows(tmp_path, monkeypatch):
    """A serving engine that maps `architectures` to its own class finds none, neither in the file nor in memory."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, logits = saved(tmp_path / "model")
    named = json.loads((folder / "config.json").read_text())["architectures"]
    read = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert named == read.architectures == [embeddings.ARCHITECTURE]
    assert not hasattr(transformers, embeddings.ARCHITECTURE)
    read.save_pretrained(folder)  # the config alone, as tools do: it still leads to the model
    assert json.loads((folder / "config.json").read_text())["base_architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(load_model(folder)(ENCODED).logits, logits)


def test_folders_written_before_name_the_family_s_architecture(tmp_path):
    folder, logits = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": config.pop("base_architectures")}))
    assert torch.equal(load_model(folder)(ENCODED).logits, logits)


def test_an_unfinished_gradual_rotation_keeps_its_angle(tmp_path):
    model = tiny_model()
    install(model, METHODS["aside"]).angle = 0.4
    save_model(model, tokenizer(), tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert role_embedding_of(again).angle == 0.4
    assert torch.equal(again(ENCODED).logits, model(ENCODED).logits)


@pytest.mark.parametrize("before", METHODS)
@pytest.mark.parametrize("after", [*METHODS, None])
def test_fine_tuning_goes_on_from_a_loaded_checkpoint(tmp_path, before, after):
    folder, logits = saved(tmp_path / "model", METHODS[before], tied=True)
    model = load_model(folder).train()
    install(model, METHODS[after] if after else None)
    if after in (None, before):
        assert torch.equal(model(ENCODED).logits, logits)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = model(ENCODED, labels=IDS).loss
    start.backward()
    optimizer.step()
    assert model(ENCODED, labels=IDS).loss < start
    save_model(model, tokenizer(), tmp_path / "next")
    assert torch.equal(load_model(tmp_path / "next")(ENCODED).logits, model.eval()(ENCODED).logits)


def test_a_plain_folder_gets_a_vanilla_embedding(tmp_path):
    model = tiny_model("gemma3", tied=True)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded.get_input_embeddings(), RoleEmbedding)
    assert torch.equal(loaded(ENCODED).logits, model(IDS).logits)


def test_shards(tmp_path):
    model = tiny_model()
    install(model, METHODS["ise"])
    logits = model(ENCODED).logits
    model.save_pretrained(tmp_path, max_shard_size="5KB")  # transformers' own way writes the same kind of folder
    assert torch.equal(load_model(tmp_path)(ENCODED).logits, logits)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing \(named in model.safetensors.index.json\)"):
        load_model(tmp_path)
    save_model(model, tokenizer(), tmp_path)  # one file now: the shards of the earlier attempt must not linger
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    assert torch.equal(load_model(tmp_path)(ENCODED).logits, logits)


def test_the_tokenizer_comes_along(tmp_path):
    for family, name in [("llama", "vanilla"), ("llama", "aside"), ("qwen2", "vanilla"), ("qwen2", "aside")]:
        folder, _ = saved(tmp_path / family / name, METHODS[name], family=family)
        both = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # AutoTokenizer alone makes a Qwen2 tokenizer of this one, because the plain model is a Qwen2.
        for loaded in both[: 1 if (family, name) == ("qwen2", "vanilla") else 2]:
            assert loaded("w4 w7 w9")["input_ids"] == tokenizer()("w4 w7 w9")["input_ids"]
            assert loaded.chat_template == tokenizer().chat_template
            assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_a_manifest_elsewhere_leads_to_the_weights(tmp_path):
    folder, logits = saved(tmp_path / "models" / "tiny")
    (tmp_path / "base").mkdir()
    write_manifest(tmp_path / "base" / "checkpoint.json", {"weights": "../models/tiny"})
    assert torch.equal(load_model(tmp_path / "base")(ENCODED).logits, logits)
    assert len(load_tokenizer(tmp_path / "base")) == V
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(CheckpointError, match=r"models/tiny/config\.json: it has \d+ bytes"):
        load_model(tmp_path / "base")


WITHOUT_BULWARK = """
import sys
sys.modules["bulwark"] = None  # importing it fails, wherever it is installed
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folders, expected = sys.argv[1].split(","), torch.load(sys.argv[2], weights_only=True)
for folder in folders:
    for options in ({}, {"trust_remote_code": False}):
        try:
            AutoModelForCausalLM.from_pretrained(folder, **options)
            sys.exit("loaded without the flag")
        except ValueError as error:
            assert "trust_remote_code=True" in str(error), error
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    assert model.dtype == expected[folder].dtype
    assert torch.equal(model(expected["ids"]).logits, expected[folder]), folder
    assert AutoTokenizer.from_pretrained(folder)("w4 w7")["input_ids"] == [4, 7]
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w4 w7")["input_ids"] == [4, 7]
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True, dtype="auto")
    assert torch.equal(again(expected["ids"]).logits, expected[folder]), folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert type(fresh.get_input_embeddings()).__name__ == "RoleEmbedding"
print("the same")
"""


def test_without_bulwark_transformers_loads_the_same_or_refuses(tmp_path):
    expected = {"ids": ENCODED}
    for name, description, model in [
        ("aside", METHODS["aside"], {"tied": True}),
        ("ise", METHODS["ise"], {"family": "mistral", "dtype": torch.bfloat16}),
        ("everything", METHODS["everything"], {"family": "gemma3", "tied": True}),
    ]:
        folder, logits = saved(tmp_path / name, description, **model)
        expected[str(folder)] = logits
    torch.save(expected, tmp_path / "expected.pt")
    folders = ",".join(name for name in expected if name != "ids")
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-I", "-c", WITHOUT_BULWARK, folders, str(tmp_path / "expected.pt")]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("the same")
    again = tmp_path / "aside-again"  # saved by transformers alone
    assert torch.equal(load_model(again)(ENCODED).logits, expected[str(tmp_path / "aside")])


def test_a_config_read_with_the_flag_does_not_open_the_plain_model(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, logits = saved(tmp_path / "model")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "llama"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(folder, config=config, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, trust_remote_code=True)
    assert torch.equal(model(ENCODED).logits, logits)


def test_missing_and_broken_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no such model folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "empty")

    def broken(name):
        return saved(tmp_path / name)[0]

    folder = broken("no-weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there are no weights"):
        load_model(folder)

    folder = broken("cut")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"safetensors file: its header cannot be read|it was cut"):
            load_model(folder)

    folder = broken("cut-config")
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        load_model(folder)

    folder = broken("unknown-family")
    edit(folder / "config.json", base_model_type="lama")
    with pytest.raises(CheckpointError, match=r'a base_model_type that transformers .* "lama"'):
        load_model(folder)

    folder = broken("unfinished")
    (folder / "training").mkdir()
    with pytest.raises(CheckpointError, match="has not finished"):
        load_model(folder)
    write_manifest(folder / "checkpoint.json", {})
    assert load_model(folder)(ENCODED).logits.shape == (2, 9, V)

    folder = broken("no-tokenizer")
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_weights_that_do_not_fit_the_description_are_refused(tmp_path):
    folder, _ = saved(tmp_path / "model")
    edit(folder / "config.json", role_embedding=METHODS["ise"])
    with pytest.raises(CheckpointError, match=r"missing keys: model\.embed_tokens\.role_shift"):
        load_model(folder)
    folder, _ = saved(tmp_path / "other", METHODS["everything"])
    edit(folder / "config.json", role_embedding=METHODS["aside"])
    with pytest.raises(CheckpointError, match=r"unexpected keys: model\.embed_tokens\.ro"):
        load_model(folder)
    edit(folder / "config.json", role_embedding={"method": "turn"})
    with pytest.raises(CheckpointError, match="method must be one of"):
        load_model(folder)


def test_an_incomplete_plain_folder_is_refused(tmp_path):
    model = tiny_model()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"weights of the model are missing: model\.layers\.1\.mlp"):
        load_model(tmp_path)


def test_wrong_dtypes_and_wrapped_models(tmp_path):
    folder, _ = saved(tmp_path / "model")
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    for wrong in ("float31", "int64"):
        with pytest.raises(CheckpointError, match="not a dtype for weights"):
            load_model(folder, dtype=wrong)
    lora = get_peft_model(load_model(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match="merge the adapter first"):
        save_model(lora, tokenizer(), tmp_path / "lora")
    with pytest.raises(CheckpointError, match="no role embedding"):
        save_model(tiny_model(), tokenizer(), tmp_path / "plain")


def test_given_weights_are_saved_instead_of_the_models_own(tmp_path):
    """As after gathering weights that are sharded over processes."""
    model = tiny_model()
    install(model, METHODS["ise"])
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(ENCODED).logits.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_model(model, tokenizer(), tmp_path, state_dict=gathered)
    assert torch.equal(load_model(tmp_path)(ENCODED).logits, expected)


@pytest.mark.parametrize(
    "name",
    ["model-00002-of-00002.safetensors", "pytorch_model.bin", "adapter_config.json", "chat_template.json", "x.py"],
)
def test_a_file_that_loading_would_read_and_nobody_listed_is_refused(tmp_path, name):
    folder, _ = saved(tmp_path / "tiny")
    write_manifest(folder / "checkpoint.json", {})
    (folder / "README.md").write_text("notes")
    load_model(folder)
    (folder / name).write_text("{}")
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=rf"{name}: loading .*checkpoint\.json does not list it.*Remove it"):
            load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_told_before_loading(tmp_path, name):
    folder, _ = saved(tmp_path / "tiny")
    write_manifest(folder / "checkpoint.json", {})
    raw = bytearray((folder / name).read_bytes())
    raw[-9] ^= 1
    (folder / name).write_bytes(raw)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=rf"{name}: its content is not .*remove .*checkpoint\.json"):
            load(folder)
