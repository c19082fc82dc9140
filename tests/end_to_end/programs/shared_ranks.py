"""The trainings of test_shared_ranks.py, one after the other on one parent that is read once; see all_ranks.py.

The plan is a list {"name", "settings"}; each is trained twice: on the model that was read, or on a copy of it if
another came before, and on a copy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from training_samples import settings, trained

from bulwark.jobs.loading import loaded_once
from bulwark.models import checkpoints
from bulwark.models.embeddings import install
from bulwark.training import engine as engines

EXAMPLES = 13


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        chosen = settings(**training["settings"])
        with loaded_once(parent / "model") as loads:
            for number in (0, 1):
                with engines.sharded_loading(chosen):
                    model = checkpoints.load_model(parent / "model", dtype=chosen.precision, device="cpu")
                install(model, {"method": "vanilla"})
                folder = parent / f"{training['name']}_{processes.count}_{number}"
                result = trained(model, folder, EXAMPLES, **training["settings"])
                if processes.main:
                    torch.save(result.model.state_dict(), folder / "weights.pt")
        if processes.main:
            told = {"read": loads.read, "copied": loads.copied}
            (parent / f"{training['name']}_{processes.count}.json").write_text(json.dumps(told))
