"""The trainings of test_delta_ranks.py, one by one; see all_ranks.py.

The plan is a list of {"name", "settings"} with either "checks", an objective of shard_samples, or the arguments of
delta_samples.trained; "interrupt" stops before that step and begins again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import delta_samples
import shard_samples
import torch
from stopped_samples import Interrupted
from training_samples import trained

from bulwark.training import engine as engines


def trained_as(training: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    if "checks" in training:
        chosen = training["settings"]
        model = delta_samples.model_of(chosen.get("precision", "float32"))
        return trained(model, folder, objective=getattr(shard_samples, training["checks"])(), **chosen), None
    given = {key: training.get(key) for key in ("preservation", "continuation", "intervention")}
    if "interrupt" in training:
        try:
            delta_samples.trained(folder, **given, **training["settings"], interrupt=training["interrupt"])
        except Interrupted:
            pass
        else:
            raise AssertionError("it was not interrupted")
    return delta_samples.trained(folder, **given, **training["settings"])


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        result, objective = trained_as(training, folder)
        if objective is not None:
            kept = {"report": objective.report(), "at": getattr(objective, "at", {})}
            torch.save(kept, folder / f"objective_{processes.rank}.pt")
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
