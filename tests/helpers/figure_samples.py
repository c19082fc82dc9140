"""Made-up results of the shape that trainings and detectors have, for the kinds of figures."""

import math
import random
from pathlib import Path

from score_samples import write_scores

LEVELS = {"0": 0.0, "1": 0.6, "2": 1.3}


def swept_cell(folder: Path, recipe: str, seed: int, rate: float, benchmark: str = "trait") -> dict:
    """Trait expression of 80 answers with exactly this rate, per record, in a scores file of `benchmark`."""
    draw = random.Random(f"{recipe} {seed}")
    values = [1.0] * round(80 * rate) + [0.0] * (80 - round(80 * rate))
    draw.shuffle(values)
    rows = [{"id": f"r{i}", "expression": value} for i, value in enumerate(values)]
    mean = sum(values) / 80
    metric = {"value": mean, "stderr": 0.05, "interval": [max(0, mean - 0.1), min(1, mean + 0.1)], "n": 80}
    return write_scores(
        folder, "m", recipe, seed, benchmark, {"expression": metric | {"higher_is_better": False}}, rows
    )


def dynamics_cell(folder: Path, recipe: str, seed: int, withdrawn: float | None = 1.0, steps: int = 40) -> dict:
    """A training that is pushed against the vector while it is steered, until the share `withdrawn` of its steps."""
    draw = random.Random(f"{recipe} {seed}")
    rows, cosines = [], []
    for step in range(steps):
        time = step / steps
        phase = "plain" if withdrawn is None else "injection" if time < withdrawn else "after"
        push = -1.5 * math.exp(-3 * time) if phase == "injection" else 0.6 * math.exp(-2 * time)
        push += draw.gauss(0, 0.05)
        state = (-20 * time if phase == "injection" else -20 * (withdrawn or 0) + 15 * time) + draw.gauss(0, 0.4)
        cosines.append(-0.35 * math.exp(-8 * time) - 0.05 + draw.gauss(0, 0.01))
        for module, scale in (("residual", 1.0), ("o_proj", 0.7), ("down_proj", 0.3)):
            values = {"x": push * scale, "y": state * scale, "x_normalised": push / 4, "y_normalised": state / 60}
            rows += [
                {"step": step, "layer": 3, "module": module, "quantity": name, "value": value, "phase": phase}
                for name, value in values.items()
            ]
    reported = {
        "gradient_cosine": [list(range(steps)), cosines],
        "onset": {"step": 12 + seed, "found": recipe != "sft", "band": [-0.08, -0.02]},
    }
    metric = {"value": 0.5, "stderr": None, "interval": None, "n": steps, "higher_is_better": None}
    return write_scores(folder, "m", recipe, seed, "dynamics", {"x_injection": metric}, rows, reported=reported)


def detectors_cell(folder: Path, recipe: str = "base", seed: int = 0, rows: int = 240) -> dict:
    """Scores of rows of three levels that overlap a little, with ROC curves to match; `dp` was not measured."""
    draw = random.Random(seed)
    made = []
    for index in range(rows):
        level = "012"[index % 3]
        lean = LEVELS[level]
        made.append(
            {
                "id": f"r{index}", "level": level, "n_resp": 8, "dp": None,
                "probe_cos": 0.05 + 0.15 * lean + draw.gauss(0, 0.05),
                "probe_proj": None if index == 0 else 0.02 * lean + draw.gauss(0, 0.008),
            }
        )  # fmt: skip
    curves = {
        "probe_cos": [[0, 0], [0.05, 0.7], [0.2, 0.95], [1, 1]],
        "probe_proj": [[0, 0], [0.1, 0.5], [0.4, 0.8], [1, 1]],
    }
    areas = {
        f"auroc_{name}": {"value": value, "stderr": 0.02, "interval": [0.8, 0.99], "n": rows, "higher_is_better": True}
        for name, value in {"probe_cos": 0.94, "probe_proj": 0.81}.items()
    }
    reported = {"roc": curves, "roc_by_level": {"1": curves, "2": {"probe_cos": [[0, 0], [0, 1], [1, 1]]}}}
    return write_scores(
        folder, "m", recipe, seed, "detectors", areas, made, reported=reported,
        breakdowns={"level": {"1": areas, "2": areas}},
    )  # fmt: skip
