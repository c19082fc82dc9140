"""The trainings of test_steered_ranks.py, under the interventions of the plan; see all_ranks.py.

Each is {"name", "settings"}, optionally with "intervention", "schedule", "layers", "ablate", "embedded", and
    "interrupt"   stop in the middle of that optimizer step on all ranks, and begin again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from steering_samples import course_of, fused, steered_model
from stopped_samples import Interrupted, attempts, stopping
from torch import nn
from training_samples import settings, trained

from bulwark.steering.embedded import Carried, embedded_in
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.steer import Steering, steering
from bulwark.training import engine as engines

COUNT = 13  # with steps of four, one is left over at the end of an epoch, and the second rank has none


def objective_of(model: nn.Module, training: dict[str, Any], folder: Path, interrupt: int | None) -> Steering:
    intervention = InterventionSettings(**{"alpha": 3.0} | training.get("intervention", {}))
    schedule = ScheduleSettings(**training.get("schedule", {}))
    vectors = fused(*training.get("layers", [2]))
    if training.get("embedded"):
        course = course_of(model, folder, COUNT, **training["settings"])
        objective = steering(course, vectors, intervention, schedule, embedded=True)
    else:
        over = schedule.over(settings(**training["settings"]).total_steps(COUNT), intervention.alpha)
        objective = Steering(vectors, intervention, over, ablate=training.get("ablate", False))
    return stopping(objective, interrupt)


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        for at in attempts(training):
            model = steered_model()
            objective = objective_of(model, training, folder, at)
            try:
                result = trained(model, folder, COUNT, objective, [Carried(model)], **training["settings"])
            except Interrupted:
                continue
        told = objective.report()  # all ranks are asked
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
            carried = embedded_in(result.model)
            told |= {"loss": result.report.loss, "resumed_at": result.report.resumed_at}
            told |= {"exposure": carried.exposure if carried else None}
            (folder / "report.json").write_text(json.dumps(told))
