"""The trainings of test_forgetting_ranks.py; see all_ranks.py.

Each is {"name", "kind", "given", "settings"}: a step, its settings beside data and training, and the training's. What
`prepare` of the test has written lies in the folder: the parent and the forget set.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_causal_models import tiny_model
from training_samples import run
from unlearning_samples import course_of, objective_of, on_the_disk, pairs

from bulwark.training import engine as engines


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        sides = pairs() if training["kind"] == "repnoise" else None
        course = course_of(parent, tiny_model(layers=3), sides=sides, write=False, **training["settings"])
        course = replace(course, job=on_the_disk(course.job))
        objective = objective_of(training["kind"], course, **training["given"])
        result = run(course, objective, folder)
        told = objective.report()["forgetting"]["losses"]
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
            (folder / "losses.json").write_text(json.dumps(told))
