"""Adversarial suffixes (GCG, R2D2) and alignment that is meant to survive fine-tuning (Vaccine, Booster, Lisa, SDD).

GCG is Zou et al. 2023 (arXiv 2307.15043), HarmBench Mazeika et al. 2024 (arXiv 2402.04249), "its code" a copy of its
adversarial training. Vaccine, Booster and Lisa are of Huang et al. (arXiv 2402.01109, 2409.01586, 2405.18641),
T-Vaccine of Liu et al. (arXiv 2410.09760); "the script" is the one that the step names. SDD is Chen et al. 2025 (arXiv
2507.21182). "recalled" values could not be looked up.
"""

from defaults.reader import Row, check

NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
SAME = "ours: the job's own, as in the other steps that train"
DATA = "ours: a data set that TAR's study has already; the step names the source's own"
FITS = "ours: the source's batch, on one GPU, made to divide over eight"
ADAPTERS = "Booster's authors, train.py: rank 32, alpha 4, on q, k and v; for Vaccine and Lisa recalled, not verified"
SIZES = {"lora": {"rank": 32, "alpha": 4.0, "target_modules": ["q_proj", "k_proj", "v_proj"]}}

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

STEPS: list[Row] = [
    *(
        (f"steps/{step}", "", {"kind": kind, "cost": cost}, NAME)
        for step, kind, cost in (
            ("r2d2", "r2d2", 4.0),
            ("booster", "booster", 3.0),
            ("vaccine", "vaccine", 2.0),
            ("lisa", "lisa", 1.0),
            ("sdd", "sdd", 1.0),
        )
    ),
    ("steps/r2d2", "settings", {"data": "magpie", "cases": "hh_refusals"}, DATA),
    ("steps/r2d2", "settings.pool", 180, "HarmBench, Sec. 5"),
    ("steps/r2d2", "settings.cases_per_step", 8, "HarmBench's code: 8 over 8 GPUs"),
    ("steps/r2d2", "settings", {"reset_every": 50, "reset_share": 0.2}, "HarmBench, Sec. 5, and its code"),
    ("steps/r2d2", "settings.training.max_steps", 2000, "HarmBench, Sec. 5"),
    ("steps/r2d2", "settings.training", {"batch_size": 256, "micro_batch_size": 8}, "HarmBench's code: 8 x 8 GPUs x 4"),
    ("steps/r2d2", "settings.training", {"learning_rate": 2e-5, "schedule": "cosine"}, "HarmBench's code"),
    ("steps/r2d2", "settings.training.max_tokens", 2048, "HarmBench's code"),
    *(
        (f"steps/{step}", "settings.training", {"gradient_checkpointing": True, "zero_stage": 3}, SAME)
        for step in ("r2d2", "sdd")
    ),
    *(
        (f"steps/{step}", "settings.training.precision", "bfloat16", SAME)
        for step in ("r2d2", "sdd", "vaccine", "booster", "lisa")
    ),
    *((f"steps/{step}", "settings.training", SIZES, ADAPTERS) for step in ("vaccine", "booster", "lisa")),
    *(
        (f"steps/{step}", "settings.training.max_tokens", 256, "Booster's authors, train.py: model_max_length")
        for step in ("vaccine", "booster", "lisa")
    ),
    ("steps/vaccine", "settings.data", "plain_refusal", DATA),
    ("steps/vaccine", "settings.rho", 2.0, "Vaccine, Sec. 5: recalled, not verified"),
    ("steps/vaccine", "settings.training", {"epochs": 50.0, "learning_rate": 1e-3, "weight_decay": 0.1}, "the script"),
    ("steps/vaccine", "settings.training", {"warmup_ratio": 0.1, "schedule": "cosine"}, "the script"),
    ("steps/vaccine", "settings.training", {"batch_size": 8, "micro_batch_size": 1}, FITS),
    ("steps/t_vaccine", "", {"like": "vaccine", "kind": "vaccine"}, VARIANT),
    ("steps/t_vaccine", "settings.rho", 3.0, "T-Vaccine: recalled, not verified"),
    ("steps/t_vaccine", "settings.targeted.harmful", "hh_refusals", DATA),
    (
        "steps/t_vaccine",
        "settings.targeted",
        {"layers": 8, "redraw_every": 20, "measure_every": 200},
        "the script: S, J and K",
    ),
    (
        "steps/t_vaccine",
        "settings.targeted.batch_size",
        8,
        "ours: the authors measure on one example",
    ),
    ("steps/t_vaccine", "settings.training.epochs", 20.0, "the script"),
    ("steps/t_vaccine", "settings.training.batch_size", 16, FITS),
    ("steps/booster", "settings", {"data": "plain_refusal", "attack": "hh_refusals"}, DATA),
    ("steps/booster", "settings", {"lambda_": 5.0, "alpha": 0.1}, "the script: lamb and alpha"),
    ("steps/booster", "settings.training", {"epochs": 20.0, "learning_rate": 5e-4, "weight_decay": 0.1}, "the script"),
    ("steps/booster", "settings.training.schedule", "constant", "the script"),
    ("steps/booster", "settings.training", {"batch_size": 16, "micro_batch_size": 2}, FITS),
    ("steps/lisa", "settings", {"data": "alpaca_cleaned", "alignment": "plain_refusal"}, DATA),
    ("steps/lisa", "settings", {"alignment_steps": 100, "user_steps": 900, "rho": 1.0}, "the script"),
    ("steps/lisa", "settings.proximal_after", 0.1, "the trainer: not in the first tenth of the steps"),
    ("steps/lisa", "settings.training", {"epochs": 20.0, "learning_rate": 1e-5, "weight_decay": 0.0}, "the script"),
    ("steps/lisa", "settings.training.schedule", "constant", "the script; its warm-up has no effect on this schedule"),
    ("steps/lisa", "settings.training", {"batch_size": 8, "micro_batch_size": 1}, FITS),
    ("steps/sdd", "settings", {"data": "hh_refusals", "answers": "alpaca_cleaned"}, DATA),
    ("steps/sdd", "settings", {"most_similar": 0.25, "pairs": 8000}, "SDD, Sec. 4 and 5"),
    ("steps/sdd", "settings.training", {"max_steps": 500, "batch_size": 24, "learning_rate": 5e-7}, "SDD, Sec. 5"),
    ("steps/sdd", "settings.training.micro_batch_size", 3, "ours: the batch over eight GPUs"),
    ("steps/sdd", "settings.training.max_tokens", 1024, "ours: not given"),
]

ROWS: list[Row] = [*CLASSES, *STEPS]


def test_every_row_holds():
    check(ROWS)
