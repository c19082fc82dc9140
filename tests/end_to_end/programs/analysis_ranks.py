"""The trainings of test_analysis_ranks.py, with the analyser at the ZeRO stages of the plan; see all_ranks.py."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_causal_models import HIDDEN, tiny_model
from training_samples import trained

from bulwark.models.embeddings import install
from bulwark.steering.dynamics.analyser import Analyser
from bulwark.steering.settings import AnalysisSettings, InterventionSettings
from bulwark.training import engine as engines
from bulwark.training.objectives import Objective

EXAMPLES = 13  # with steps of four, one is left over at the end of an epoch, and the second rank has none


def do(plan: list[int], parent: Path, processes: engines.Processes) -> None:
    for stage in plan:
        place = parent / f"stage{stage}_{processes.count}"
        objective = Objective()
        analyser = Analyser(
            AnalysisSettings(every=1, windows={"early": (0.0, 0.5), "late": (0.5, 1.0)}),
            layer=1,
            vector=torch.linspace(-1, 2, HIDDEN),
            intervention=InterventionSettings(),
            folder=place,
            phase=objective.phase,
        )
        model = tiny_model("llama")
        install(model, {"method": "vanilla"})
        trained(
            model, place, EXAMPLES, objective=objective, observers=[analyser], max_steps=5, micro_batch_size=1,
            zero_stage=stage, gradient_checkpointing=stage == 3,
        )  # fmt: skip
