"""Adversaries that tamper with weights: the red team of TAR (Tamirisa et al. 2024, arXiv 2408.00761, "the paper")."""

from defaults.reader import Row, check

OFF = "ours: off unless a step asks for it"
SGDR = "spec of the paper's code: cosine with restarts, cycle_mul 1 and decay 1"

TRAINING: list[Row] = [
    ("settings TrainingSettings", "momentum", 0.0, "torch's SGD"),
    ("settings TrainingSettings", "nesterov", False, "torch's SGD"),
    ("settings TrainingSettings", "min_learning_rate", 0.0, "transformers' cosine ends at 0"),
    ("settings TrainingSettings", "cycle_steps", None, OFF),
    ("settings TrainingSettings", "cycle_mul", 1.0, SGDR),
    ("settings TrainingSettings", "cycle_decay", 1.0, SGDR),
]

ROWS: list[Row] = TRAINING


def test_every_row_holds():
    check(ROWS)
