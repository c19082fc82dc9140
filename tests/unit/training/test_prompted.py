"""The step `prompted`: the parent's weights where they lie, asked in another form of the parent's template."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_causal_models import HIDDEN
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import steps
from bulwark.data.records import Turn, write_records
from bulwark.errors import CheckpointError, ConfigurationError
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install
from bulwark.models.open import open_model
from bulwark.settings import validated

TURNS = [{"role": "instruction", "text": "Name a tree."}, {"role": "data", "text": "Oak, fox."}]
ANSWER = {"role": "response", "text": "The oak."}


@pytest.fixture
def place(tmp_path):
    """A folder with the checkpoint `parent` (an ASIDE model, and a file that goes along) and records."""
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, initializer_range=0.2, **sizes))
    install(model, {"method": "aside"})
    checkpoints.save_model(model, tiny_tokenizer("chatml"), tmp_path / "parent")
    (tmp_path / "parent/preprocessor_config.json").write_text("{}", encoding="utf-8")
    manifests.write_manifest(tmp_path / "parent/checkpoint.json", {"template": "alpaca"})
    for split in ("train", "validation"):
        write_records(tmp_path / f"{split}.jsonl", [{"id": str(n), "turns": [*TURNS, ANSWER]} for n in range(4)])
    return tmp_path


def done(place, kind, settings, parent, name):
    inputs = {split: str(place / f"{split}.jsonl") for split in ("train", "validation")} if kind == "sft" else {}
    manifest = str(place / name / "checkpoint.json")
    steps.execute(Job(kind, settings, str(place / parent / "checkpoint.json"), manifest, inputs, {"seed": 0}, ""))
    return manifests.read_manifest(manifest)


def test_the_weights_are_the_parents_and_the_template_another(place):
    made = done(place, "prompted", {"form": "sandwich"}, "parent", "sandwich")
    assert (made["template"], made["weights"], made["kind"]) == ("alpaca_sandwich", "../parent", "prompted")
    assert made["carried"] == ["preprocessor_config.json"]
    assert [path.name for path in (place / "sandwich").iterdir()] == ["checkpoint.json"]
    before, after = (open_model(place / name, "float32") for name in ("parent", "sandwich"))
    theirs = before.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in after.model.state_dict().items())
    turns = [Turn(**turn) for turn in TURNS]
    assert "Please always remember that your task is: Name a tree." in after.builder.prompt(turns).text
    assert "Please" not in before.builder.prompt(turns).text.removeprefix("Below is")


def test_what_is_trained_after_it_is_trained_and_asked_with_it(place):
    done(place, "prompted", {"form": "delimiters"}, "parent", "marked")
    training = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2}
    made = done(place, "sft", {"data": "x", "training": training}, "marked", "trained")
    assert (made["template"], made["weights"]) == ("alpaca_delimiters", ".")
    assert made["carried"] == ["preprocessor_config.json"]
    assert made["prompt_digest"] == open_model(place / "marked", "float32").builder.digest
    text = open_model(place / "trained", "float32").builder.prompt([Turn(**turn) for turn in TURNS]).text
    assert "\n'''\nOak, fox.\n'''" in text


def test_a_checkpoint_without_such_a_form_and_an_unknown_form_are_refused(place):
    done(place, "prompted", {"form": "sandwich"}, "parent", "once")
    with pytest.raises(ConfigurationError, match='"alpaca_sandwich" has no form "delimiters"; these have one: chat'):
        done(place, "prompted", {"form": "delimiters"}, "once", "twice")
    assert not (place / "twice/checkpoint.json").exists()
    with pytest.raises(ConfigurationError, match=r'no form "sandwhich" of a prompt template\. Did you mean "sandwich"'):
        validated(steps.module_of("prompted").Settings, {"form": "sandwhich"}, "settings")


def test_weights_that_changed_since_are_refused(place):
    done(place, "prompted", {"form": "sandwich"}, "parent", "sandwich")
    config = json.loads((place / "parent/config.json").read_text(encoding="utf-8"))
    (place / "parent/config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"parent/config\.json"):
        open_model(place / "sandwich", "float32")


def test_what_the_parents_manifest_does_not_list_is_no_part_of_it(place):
    """Logs and the manifest itself may go, or say another time, and the checkpoint is the same."""
    (place / "parent/tensorboard").mkdir()
    (place / "parent/tensorboard/events.1").write_text("log", encoding="utf-8")
    made = done(place, "prompted", {"form": "sandwich"}, "parent", "sandwich")
    listed = {entry["name"] for entry in made["files"]}
    theirs = manifests.read_manifest(place / "parent")["files"]
    assert listed == {f"../parent/{entry['name']}" for entry in theirs}
    assert {"../parent/model.safetensors", "../parent/preprocessor_config.json"} <= listed
