"""Defenses that unlearn: the baselines of TAR (Tamirisa et al. 2024, arXiv 2408.00761), "the paper" in these rows.

"the code" is that of the paper; each method's own paper is named where it is the source.
"""

from defaults.reader import Row, check

NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
OFF = "ours: off unless a step asks for it"
SAME = "ours: the job's own, as in the other steps that train"
DATA = "the paper, App. C; the code's loaders"
TUNED = "the paper, App. G.1: the best of a grid, of the other baselines"
ADAPTERS = "ours: the sizes that are usual for 8B models, with ten times the learning rate"


CLASSES: list[Row] = [
    ("settings ForgettingSettings", "forget_batch_size", None, "ours: as large as the retain batch, as in the code"),
    ("settings ForgettingSettings", "forget_micro_batch_size", None, "ours: as the retain batch's"),
    ("settings ForgettingSettings", "retain_weight", 1.0, "the paper, App. G.1"),
    ("settings ForgettingSettings", "forget_weight", 1.0, "the paper, App. G.1"),
    ("settings PaddingSettings", "count_padding", False, "ours: the code averages over padding, which teaches nothing"),
    ("settings steps.max_entropy", "positions", "all", "the code: every position, not only those that predict"),
]

ROWS: list[Row] = [*CLASSES]


def test_values_are_those_of_their_sources():
    check(ROWS)
