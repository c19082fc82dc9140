"""Two processes on the CPU (gloo), started by the real launcher, train what one process trains, at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stopped_samples import resumed
from transformers import AutoModelForCausalLM, LlamaConfig

STEPS = {"max_steps": 9, "micro_batch_size": 1, "evaluate_every": 4}
TRAININGS = {
    "replicated": {"method": "ise", "settings": {}},
    "optimizer_sharded": {"method": "vanilla", "settings": {"zero_stage": 1}},
    "gradients_sharded": {"method": "ise", "settings": {"zero_stage": 2}},
    "weights_sharded": {"method": "ise", "settings": {"zero_stage": 3}},
    "tied": {"method": "aside", "settings": {"zero_stage": 3, "gradient_checkpointing": True}, "tied": True},
    "loaded_in_shards": {"method": "ise", "settings": {"zero_stage": 3}, "folder": "model"},
    "adapters": {"method": "aside", "settings": {"zero_stage": 3, "lora": {"rank": 2}}},
    "packed": {"method": "aside", "settings": {"zero_stage": 2, "packing": True, "max_tokens": 16}},
    "best": {
        "method": "vanilla",
        "settings": {"zero_stage": 3, "keep_best": True, "learning_rate": 0.02, "evaluate_every": 1},
    },
    "averaged": {
        "method": "vanilla",
        "settings": {"zero_stage": 3, "optimizer": "schedulefree_adamw", "schedule": "constant"},
    },
}
for stage in (0, 1, 2, 3):
    for objective in ("Edited", "Trajectory"):
        # A step is one micro-batch on each rank, since a trajectory belongs to a whole batch.
        chosen = {"zero_stage": stage, "max_grad_norm": 0.0, "max_steps": 4}
        TRAININGS[f"{objective}_{stage}"] = {"method": "ise", "settings": chosen, "objective": objective}
RESUMED = resumed(TRAININGS, ["replicated", "gradients_sharded", "weights_sharded", "adapters"], at=6)

PROGRAM = "training_ranks"


def _planned(name: str, training: dict, ranks: int) -> dict:
    micro_batch = {"micro_batch_size": 4 // ranks} if "objective" in training else {}
    return training | {"name": name, "settings": STEPS | training["settings"] | micro_batch}


# All trainings with two ranks and with one; the resumed ones with two only.
PLANS = {
    ranks: [_planned(name, training, ranks) for name, training in trainings.items()]
    for ranks, trainings in ((1, TRAININGS), (2, TRAININGS | RESUMED))
}


def prepare(folder: Path) -> None:
    """Save the model that is loaded in shards."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends(name, folder):
    one, two = (torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True) for ranks in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TRAININGS)
def test_and_report_the_same(name, folder):
    one, two = (json.loads((folder / f"{name}_{ranks}" / "report.json").read_text()) for ranks in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for told in ("steps", "tokens", "target_tokens", "weights_of_step", "parameters", "trainable_parameters"):
        assert one[told] == two[told]
    for curve in ("loss", "validation"):
        torch.testing.assert_close(torch.tensor(two[curve]), torch.tensor(one[curve]), atol=1e-5, rtol=0)


def test_the_best_weights_came_from_a_step_before_the_last(folder):
    report = json.loads((folder / "best_2" / "report.json").read_text())
    assert report["weights_of_step"] == report["best_step"] < report["steps"]


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_bit_for_bit(name, folder):
    whole, parts = (
        torch.load(folder / f"{run}_2" / "weights.pt", weights_only=True)
        for run in (name.removesuffix("_resumed"), name)
    )
    assert json.loads((folder / f"{name}_2" / "report.json").read_text())["resumed_at"] == [6]
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
