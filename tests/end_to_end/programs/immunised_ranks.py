"""The trainings of test_immunised_ranks.py, one by one; see all_ranks.py.

The plan is a list of {"name", "kind", "given", "settings"}: a step, its own settings and those of its training;
"interrupt" stops before that step and begins again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from immunisation_samples import course_of, objective_of
from stopped_samples import Interrupted, attempts, stopping
from training_samples import run

from bulwark.training import engine as engines


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        for at in attempts(training):
            # Each rank writes the same data, in a folder of its own.
            course = course_of(folder / f"data_{processes.rank}", learning_rate=0.01, **training["settings"])
            course.job.inputs["harmful"] = course.job.inputs["preference"]
            objective = objective_of(training["kind"], course, **training["given"])
            torch.distributed.barrier()
            try:
                result = run(course, stopping(objective, at), folder)
            except Interrupted:
                continue
        torch.save(objective.report(), folder / f"report_{processes.rank}.pt")
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
