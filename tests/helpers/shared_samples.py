"""A parent, records, and trainings of it that share a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import seals
from bulwark.data.records import write_records
from bulwark.jobs.job import Job
from bulwark.jobs.sealing import Sealing
from bulwark.jobs.together import Part
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install

PARENT = "results/checkpoints/tiny/base/seed0/checkpoint.json"
RECORDS = {"train": "data/train.jsonl", "validation": "data/train.jsonl"}
TRAINING = {
    **{"max_steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "schedule": "constant"},
    **{"save_minutes": None, "save_every": 2},
}
ADVERSARIES = {
    "relearn_a": {},
    "relearn_lora": {"lora": {"rank": 2, "dropout": 0.2}},
    "relearn_b": {"learning_rate": 3e-3, "max_steps": 5},
}
DIVERGES = {"learning_rate": 1e30, "optimizer": "sgd", "max_grad_norm": 0.0}


def part(recipe: str, **changes: Any) -> Part:
    """The training of an adversary, as a part of a job."""
    settings = {"data": "trees", "training": TRAINING | ADVERSARIES.get(recipe, {}) | changes}
    output = f"results/checkpoints/tiny/{recipe}/seed0/checkpoint.json"
    identity = {"model": "tiny", "recipe": recipe, "seed": 0}
    job = Job("relearn", settings, PARENT, output, RECORDS, identity, f"logs/{recipe}.log", "code")
    asked = f"{json.dumps(changes)} apply_step:tiny/{recipe}/0"
    return Part(job, Sealing((PARENT, RECORDS["train"]), (output,), asked, "apply_step"))


def prepare() -> None:
    """Write into the working directory a parent, whose training depends on random numbers, and records."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, attention_dropout=0.1, **sizes))
    install(model, {"method": "vanilla"})
    checkpoints.save_model(model, tiny_tokenizer("chatml"), Path(PARENT).parent)
    manifests.write_manifest(Path(PARENT), {"template": "alpaca"})
    seals.seal(PARENT, "asked", {}, "start_recipe")
    turns = [{"role": "instruction", "text": "Name a tree."}, {"role": "response", "text": "The oak."}]
    for folder in ("data", "logs"):
        Path(folder).mkdir()
    write_records(Path(RECORDS["train"]), [{"id": str(n), "turns": turns * (1 + n % 2)} for n in range(12)])


def weights(recipe: str) -> bytes:
    return Path(f"results/checkpoints/tiny/{recipe}/seed0/model.safetensors").read_bytes()


def manifest(recipe: str) -> dict[str, Any]:
    return json.loads(Path(f"results/checkpoints/tiny/{recipe}/seed0/checkpoint.json").read_text())


def told() -> dict[str, Any]:
    return json.loads(Path("logs/0.json").read_text())


def loads_of(recipe: str) -> str:
    """What the log says last of how the parent was opened."""
    lines = [line for line in Path(f"logs/{recipe}.log").read_text().splitlines() if "weights were read" in line]
    return lines[-1].split(": ", 1)[1]
