"""The trainings of test_training_ranks.py, one after the other; see all_ranks.py.

The plan is a list of trainings {"name", "method", "settings"}, optionally with
    "folder"      load the model from there, beside the plan, each rank its shard, in place of making it
    "objective"   the name of one of training_samples
    "interrupt"   stop in the middle of that optimizer step on all ranks, and begin again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import training_samples
from stopped_samples import Interrupted, attempts, stopping
from tiny_causal_models import tiny_model
from torch import nn
from training_samples import settings, trained

from bulwark.models.checkpoints import load_model
from bulwark.models.embeddings import install
from bulwark.training import engine as engines
from bulwark.training.objectives import Objective

EXAMPLES = 13  # with steps of four, one is left over at the end of an epoch, and the second rank has none


def model_of(training: dict[str, Any], parent: Path) -> nn.Module:
    if "folder" in training:
        with engines.sharded_loading(settings(**training["settings"])):
            model = load_model(parent / training["folder"])
        weight = next(model.parameters())
        if torch.distributed.get_world_size() > 1:
            assert weight.ds_tensor.numel() < weight.ds_numel, "the model was not loaded in shards"
    else:
        model = tiny_model("llama", tied=training.get("tied", False))
    torch.manual_seed(1)
    install(model, {"method": training["method"]})
    return model


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        for at in attempts(training):
            objective = getattr(training_samples, training["objective"])() if "objective" in training else Objective()
            model = model_of(training, parent)
            try:
                result = trained(model, folder, EXAMPLES, objective=stopping(objective, at), **training["settings"])
            except Interrupted:
                continue
        assert result.main_process == processes.main
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
            (folder / "report.json").write_text(json.dumps(vars(result.report)))
