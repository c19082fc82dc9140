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
    ("settings ForgettingSettings", "side", None, "ours: a forget set of one response each"),
    ("settings PaddingSettings", "count_padding", False, "ours: the code averages over padding, which teaches nothing"),
    ("settings steps.max_entropy", "positions", "all", "the code: every position, not only those that predict"),
    ("settings steps.min_posterior", "threshold", -15.0, "the code, log_1_minus_p_loss"),
    ("settings steps.llmu", "ascent_weight", 1.0, "the code"),
    ("settings steps.llmu", "mismatch_weight", 1.0, "the code"),
    ("settings steps.llmu", "mismatch", "labels", "the code"),
    ("settings steps.llmu", "random_answers", 5, "LLMU's code, unlearn_harm.py"),
    ("settings steps.llmu", "keep", "cross_entropy", "the paper, App. G.1"),
    ("settings steps.rmu", "layer", 8, "RMU's code, --layer_id 7, which counts from 0"),
    ("settings steps.rmu", "blocks", [6, 7, 8], "RMU's code, --layer_ids 5,6,7"),
    ("settings steps.rmu", "parts", ["down_proj"], "RMU's code, --param_ids 6 of a Llama block"),
    ("settings steps.rmu", "coefficient", 20.0, "RMU's code, --steering_coeffs"),
    ("settings steps.rerouting", "layers", [10, 20], "circuit breakers' script for Llama 3 8B, --target_layers"),
    ("settings steps.rerouting", "alpha", 10.0, "circuit breakers' script for Llama 3 8B, --lorra_alpha"),
    ("settings steps.rerouting", "schedule_steps", 300, "circuit breakers' code, get_training_progress"),
    ("settings steps.repnoise", "alpha", 1.0, "RepNoise's code, rep_noise_loss"),
    ("settings steps.repnoise", "beta", 0.001, "RepNoise's code, rep_noise_loss"),
    ("settings steps.repnoise", "harmless_weight", 1.0, "RepNoise's code, rep_noise_loss"),
]

ROWS: list[Row] = [*CLASSES]


def test_values_are_those_of_their_sources():
    check(ROWS)
