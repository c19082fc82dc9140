"""A program for several processes: `launcher -m delta_ranks plan.json` does the trainings of the plan one by one.

The plan is a list of {"name", "settings"} with either "checks", an objective of shard_samples, or the arguments of
delta_samples.trained; "interrupt" stops before that step and begins again.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import delta_samples
import shard_samples
import torch
from training_samples import trained

from bulwark.training import engine as engines


def done(training: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    if "checks" in training:
        chosen = training["settings"]
        model = delta_samples.model_of(chosen.get("precision", "float32"))
        return trained(model, folder, objective=getattr(shard_samples, training["checks"])(), **chosen), None
    given = {key: training.get(key) for key in ("preservation", "continuation", "intervention")}
    if "interrupt" in training:
        try:
            delta_samples.trained(folder, **given, **training["settings"], interrupt=training["interrupt"])
        except delta_samples.Interrupted:
            pass
        else:
            raise AssertionError("it was not interrupted")
    return delta_samples.trained(folder, **given, **training["settings"])


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    processes = engines.start_processes()
    for training in json.loads(plan.read_text()):
        folder = plan.parent / f"{training['name']}_{processes.count}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        result, objective = done(training, folder)
        if objective is not None:
            kept = {"report": objective.report(), "at": getattr(objective, "at", {})}
            torch.save(kept, folder / f"objective_{processes.rank}.pt")
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
    engines.stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
