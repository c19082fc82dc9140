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

SETTINGS: list[Row] = [
    ("settings RelearningSettings", "retain", None, OFF),
    ("settings RelearningSettings", "switch", None, OFF),
    ("settings RelearningSettings", "mixture", None, OFF),
    ("settings RelearningSettings", "first_layer", None, OFF),
    ("settings RelearningSettings", "watch", None, OFF),
    ("settings WatchSettings", "split", "held_out", "the paper, App. C: a fifth of the forget set is held out"),
    ("settings WatchSettings", "examples", 256, "ours: a look costs no more than four training steps' passes"),
    ("settings WatchSettings", "every", 50, "ours: ten looks in 500 steps"),
    ("settings steps.interpolate", "other", "base", "ours: the model that an adversary has anyway"),
    ("settings steps.quantise", "block", None, "Dettmers et al. 2022 (LLM.int8()): a scale for each row"),
    ("settings steps.reinitialise", "output_embedding", False, OFF),
    ("settings steps.reinitialise", "last_blocks", 0, OFF),
]

NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
AUDIT = "the compression audit of TAR-Bio-v2"
TASKS = "Ilharco et al. 2023 (arXiv 2212.04089): any weight; which ones is ours"

WEIGHTS: list[Row] = [
    ("steps/interpolate", "", {"kind": "interpolate", "cost": 0.02}, NAME),
    ("steps/interpolate", "settings.weight", 0.5, TASKS),
    ("steps/interpolate", "settings.other", "base", "ours: the model that an adversary has anyway"),
    *(
        row
        for name, weight in {
            "interpolate_25": 0.25,
            "interpolate_75": 0.75,
            "extrapolate": 1.5,
            "extrapolate_away": -0.5,
        }.items()
        for row in (
            (f"steps/{name}", "like", "interpolate", VARIANT),
            (f"steps/{name}", "settings.weight", weight, TASKS),
        )
    ),
    ("steps/reinitialise", "", {"kind": "reinitialise", "cost": 0.02}, NAME),
    ("steps/reinitialise", "settings.last_blocks", 1, "ours: the least that can be drawn anew"),
    ("steps/reinitialise_4", "like", "reinitialise", VARIANT),
    ("steps/reinitialise_4", "settings.last_blocks", 4, "ours: an eighth of an 8B model"),
    ("steps/reinitialise_head", "like", "reinitialise", VARIANT),
    ("steps/reinitialise_head", "settings.last_blocks", 0, "ours: the head alone"),
    ("steps/reinitialise_head", "settings.output_embedding", True, "ours: the head alone"),
    ("steps/perturb", "", {"kind": "perturb", "cost": 0.02}, NAME),
    ("steps/perturb", "settings.scale", 0.05, "ours: the authors give no size for their random perturbation"),
    ("steps/prune", "", {"kind": "prune", "cost": 0.02}, NAME),
    ("steps/prune", "settings.fraction", 0.1, AUDIT),
    *(
        row
        for name, fraction in {"prune_20": 0.2, "prune_30": 0.3, "prune_40": 0.4, "prune_50": 0.5}.items()
        for row in (
            (f"steps/{name}", "like", "prune", VARIANT),
            (f"steps/{name}", "settings.fraction", fraction, AUDIT),
        )
    ),
    ("steps/quantise", "", {"kind": "quantise", "cost": 0.02}, NAME),
    ("steps/quantise", "settings.format", "int8", AUDIT),
    ("steps/quantise_nf4", "like", "quantise", VARIANT),
    ("steps/quantise_nf4", "settings.format", "nf4", AUDIT),
    ("steps/quantise_nf4", "settings.block", 64, "Dettmers et al. 2023 (arXiv 2305.14314), App. E: blocks of 64"),
]

ROWS: list[Row] = TRAINING + SETTINGS + WEIGHTS


def test_every_row_holds():
    check(ROWS)
