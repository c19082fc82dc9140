"""The trainings of test_screened_ranks.py, with the policies that the plan lists; see all_ranks.py.

Each is {"name", "policy", "settings"}, optionally with
    "flagged"     the training rows that are flagged, no others, in place of what the scores say
    "odd"         a token whose embedding is infinite
    "broken"      one weight of the output embedding is NaN: what the training stops with goes into stopped_<rank>.txt
    "interrupt"   stop in the middle of that optimizer step on all ranks, and begin again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from screening_samples import forgotten_orders, model_of, objective_of, policies, screened
from stopped_samples import Interrupted, attempts, stopping

from bulwark.errors import BulwarkError
from bulwark.steering.screening.policies import Policy, Verdict
from bulwark.training import engine as engines
from bulwark.training.batches import Batch

THRESHOLDS = {"threshold": 1, "cos_threshold": -1, "proj_threshold": -1, "margin": -1}


def policy_of(training: dict[str, Any]) -> Policy:
    policy = policies()[training["policy"]]
    if "flagged" not in training:
        return policy
    judge = policy.judge

    def chosen(detector: Any, batch: Batch, alpha: float) -> Verdict:
        """With thresholds that are passed by the chosen rows, and by no others."""
        sign = torch.tensor([1.0 if row and row[0] in training["flagged"] else -1.0 for row in batch.rows])
        for name, direction in THRESHOLDS.items():
            if hasattr(policy, name):
                setattr(policy, name, sign * direction * torch.inf)
        return judge(detector, batch, alpha)

    policy.judge = chosen
    return policy


def do(plan: list[dict[str, Any]], parent: Path, processes: engines.Processes) -> None:
    for training in plan:
        folder = parent / f"{training['name']}_{processes.count}"
        for at in attempts(training):
            model = model_of(dtype=getattr(torch, training["settings"].get("precision", "float32")))
            if "odd" in training:
                with torch.no_grad():
                    model.get_input_embeddings().weight[training["odd"]] = torch.inf
            if "broken" in training:
                with torch.no_grad():
                    model.lm_head.weight[3, 0] = torch.nan
            objective = objective_of(policy_of(training), folder, total=training["settings"]["max_steps"])
            try:
                with forgotten_orders() as forgotten:
                    stopped = stopping(objective, at)
                    result = screened(None, folder, model=model, objective=stopped, **training["settings"])
            except Interrupted:
                continue
            except BulwarkError as error:
                if "broken" not in training:
                    raise
                (folder / f"stopped_{processes.rank}.txt").write_text(str(error))
        if "broken" in training:
            continue
        if processes.main:
            torch.save(result.model.state_dict(), folder / "weights.pt")
            told = (
                vars(result.report)
                | {"forgotten": len(forgotten)}
                | {"detections": objective.report()["steering"]["detections"]}
            )
            (folder / "report.json").write_text(json.dumps(told))
