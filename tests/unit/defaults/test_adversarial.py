"""Adversarial suffixes (GCG, R2D2) and alignment that is meant to survive fine-tuning (Vaccine, Booster, Lisa, SDD).

GCG is Zou et al. 2023 (arXiv 2307.15043), HarmBench Mazeika et al. 2024 (arXiv 2402.04249), "its code" a copy of its
adversarial training. Vaccine, Booster and Lisa are of Huang et al. (arXiv 2402.01109, 2409.01586, 2405.18641),
T-Vaccine of Liu et al. (arXiv 2410.09760); "the script" is the one that the step names. SDD is Chen et al. 2025 (arXiv
2507.21182). "recalled" values could not be looked up.
"""

from defaults.reader import Row, check

CLASSES: list[Row] = [
    ("settings GcgSettings", "steps", 500, "GCG, Sec. 3: 500 steps for one behaviour"),
    ("settings GcgSettings", "search_width", 512, "GCG, Sec. 3: batch size B"),
    ("settings GcgSettings", "top_k", 256, "GCG, Sec. 3: k"),
    ("settings GcgSettings", "suffix", " ".join(["!"] * 20), "GCG's code: twenty exclamation marks"),
    ("settings GcgSettings", "allow_non_ascii", False, "GCG's code"),
    ("settings GcgSettings", "keep_best", False, "GCG, Alg. 1: the best of the batch, even if it is worse"),
    ("settings AdversarialTrainingSettings", "gcg", {"steps": 5}, "HarmBench's code: 5 steps per update, width 512"),
    ("settings AdversarialTrainingSettings", "pool", 180, "HarmBench, Sec. 5"),
    ("settings AdversarialTrainingSettings", "cases_per_step", 8, "HarmBench's code: 8 over 8 GPUs"),
    ("settings AdversarialTrainingSettings", "case_micro_batch_size", None, "ours: no result depends on it"),
    ("settings AdversarialTrainingSettings", "reset_every", 50, "HarmBench's code"),
    ("settings AdversarialTrainingSettings", "reset_share", 0.2, "HarmBench, Sec. 5"),
    (
        "settings AdversarialTrainingSettings",
        "refusal",
        "I'm sorry, I can't do that.",
        "HarmBench's code: recalled, not verified",
    ),
    (
        "settings AdversarialTrainingSettings",
        "target_tokens",
        32,
        "ours: HarmBench's targets are a sentence, these are whole answers",
    ),
    (
        "settings AdversarialTrainingSettings",
        "",
        {"sft_weight": 1.0, "away_weight": 1.0, "toward_weight": 1.0},
        "HarmBench, Alg. 1, a plain sum: recalled, not verified",
    ),
    ("settings AdversarialTrainingSettings", "away_threshold", -5.0, "HarmBench's code, log_1_minus_p_loss"),
    ("settings VaccineSettings", "rho", 2.0, "Vaccine, Sec. 5: recalled, not verified"),
    ("settings VaccineSettings", "site", "attention", "the authors' code: what attention puts out"),
    ("settings VaccineSettings", "targeted", None, "ours: T-Vaccine is a variant"),
    ("settings TargetedSettings", "layers", 8, "T-Vaccine's script: S"),
    ("settings TargetedSettings", "redraw_every", 20, "T-Vaccine's script: J"),
    ("settings TargetedSettings", "measure_every", 200, "T-Vaccine's script: K"),
    ("settings TargetedSettings", "batch_size", None, "ours: the training's; the authors' is 1"),
    ("settings AttenuationSettings", "lambda_", 5.0, "Booster's script: lamb"),
    ("settings AttenuationSettings", "alpha", 0.1, "Booster's script: alpha"),
    ("settings AttenuationSettings", "attack_batch_size", None, "Booster's trainer: as large as the training's"),
    ("settings AttenuationSettings", "attack_micro_batch_size", None, "ours: no result depends on it"),
    ("settings AlternationSettings", "alignment_steps", 100, "Lisa's script: align_step"),
    ("settings AlternationSettings", "user_steps", 900, "Lisa's script: finetune_step"),
    ("settings AlternationSettings", "rho", 1.0, "Lisa's script: RHO"),
    ("settings AlternationSettings", "proximal_after", 0.1, "Lisa's trainer: not in the first tenth of the steps"),
    (
        "settings steps.sdd",
        "most_similar",
        0.25,
        "SDD, Sec. 4; there of sentence embeddings, here of TF-IDF",
    ),
    ("settings steps.sdd", "pairs", None, "ours: one of each request"),
]

ROWS: list[Row] = [*CLASSES]


def test_every_row_holds():
    check(ROWS)
