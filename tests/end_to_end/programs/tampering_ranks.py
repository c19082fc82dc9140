"""The trainings of test_tampering_ranks.py; see all_ranks.py.

Each is {"name", "settings", "changes"}: settings of the training and of the tamper resistance; optionally "interrupt":
stop inside the attack of that outer step on all ranks, and begin again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from stopped_samples import Interrupted, attempts
from tamper_samples import COUNT, course_of, tampering
from tiny_causal_models import tiny_model
from training_samples import trained

from bulwark.models.embeddings import install
from bulwark.training import engine as engines
from bulwark.unlearning.tampering.tampering import Tampering
from bulwark.unlearning.tampering.trajectory import Attack


def stopping_inside(objective: Tampering, at: int | None) -> Tampering:
    """The objective itself, whose attack in outer step `at` stops the training behind its second inner step."""
    begin, step_of = objective.before_step, Attack.step
    place = {"step": None, "inner": 0}

    def before_step(engine: Any, step: int, total: int) -> None:
        place.update(step=step, inner=0)
        begin(engine, step, total)

    def step(attack: Attack) -> None:
        step_of(attack)
        place["inner"] += 1
        if at is not None and place["step"] == at and place["inner"] == 2:
            raise Interrupted

    Attack.step, objective.before_step = step, before_step
    return objective


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    original = Attack.step
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        for at in attempts(training):
            settings = training["settings"]
            model = tiny_model(dtype=getattr(torch, settings.get("precision", "float32")))
            install(model, {"method": "vanilla"})
            objective = Tampering(course_of(model, folder, **settings), tampering(settings, **training["changes"]))
            try:
                result = trained(model, folder, COUNT, stopping_inside(objective, at), **settings)
            except Interrupted:
                continue
            finally:
                Attack.step = original
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
            (folder / "record.json").write_text(json.dumps(objective.record))
            (folder / "report.json").write_text(json.dumps(vars(result.report)))
