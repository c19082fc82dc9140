"""Defaults of the settings that every training and every generation shares."""

from defaults.reader import Row, check

TRAINER = "the Hugging Face trainer's default, which the papers' authors left as it is"
WHOLE = "ours: nothing is limited unless a step says so"

TRAINING: list[Row] = [
    ("settings TrainingSettings", "optimizer", "adamw", TRAINER),
    ("settings TrainingSettings", "betas", [0.9, 0.999], TRAINER),
    ("settings TrainingSettings", "eps", 1e-8, TRAINER),
    ("settings TrainingSettings", "weight_decay", 0.0, TRAINER),
    ("settings TrainingSettings", "max_grad_norm", 1.0, TRAINER),
    ("settings TrainingSettings", "warmup_ratio", 0.0, TRAINER),
    ("settings TrainingSettings", "warmup_steps", None, "ours: the ratio counts unless steps are given"),
    (
        "settings TrainingSettings",
        "schedule",
        "cosine",
        "the codes of ASIDE and of Guan et al. 2026, --lr_scheduler_type",
    ),
    ("settings TrainingSettings", "epochs", None, "ours: exactly one of epochs and max_steps is given"),
    ("settings TrainingSettings", "max_steps", None, "ours: exactly one of epochs and max_steps is given"),
    (
        "settings TrainingSettings",
        "loss_on",
        "response",
        "ours: ASIDE's authors learn all tokens, and its steps say so",
    ),
    ("settings TrainingSettings", "max_tokens", None, WHOLE),
    ("settings TrainingSettings", "packing", False, "the codes of ASIDE and of Guan et al. 2026: an example a row"),
    ("settings TrainingSettings", "attention", "sdpa", "transformers' own choice, as in the codes of both papers"),
    ("settings TrainingSettings", "group_by_length", True, "ours: saves padding; off where steps have to be random"),
    ("settings TrainingSettings", "precision", "float32", TRAINER),
    ("settings TrainingSettings", "gradient_checkpointing", False, TRAINER),
    ("settings TrainingSettings", "zero_stage", 0, "DeepSpeed's default"),
    ("settings TrainingSettings", "offload", False, "the code of Guan et al. 2026, --offload"),
    ("settings TrainingSettings", "lora", None, "both papers train all weights"),
    ("settings TrainingSettings", "evaluate_every", "epoch", "the command in the README of ASIDE's code"),
    ("settings TrainingSettings", "keep_best", False, TRAINER),
    ("settings TrainingSettings", "save_every", None, "ours: minutes count, as no result depends on it"),
    ("settings TrainingSettings", "save_minutes", 10.0, "ours: what a killed run may lose"),
    ("settings TrainingSettings", "log_every", 10, "ASIDE's code, --logging_steps"),
    ("settings TrainingSettings", "snapshots", [], "ours: a training keeps what it ends with"),
    ("settings LoraSettings", "rank", 16, "ours: PEFT's default is 8"),
    ("settings LoraSettings", "alpha", 32.0, "ours: twice the rank"),
    ("settings LoraSettings", "dropout", 0.0, "PEFT's default"),
    ("settings LoraSettings", "blocks", None, "PEFT's default"),
    ("settings LoraSettings", "target_modules", "all-linear", "ours: every linear module but the output embedding"),
    ("settings FineTuningSettings", "ignore_embedded", False, "Guan et al. 2026, App. D: the intervention stays on"),
]

DECODING: list[Row] = [
    ("settings Decoding", "max_new_tokens", 1024, "ASIDE's code, its evaluations"),
    ("settings Decoding", "do_sample", False, "ASIDE's code, its evaluation of SEP: greedy"),
    ("settings Decoding", "temperature", 1.0, "persona vectors' code: temperature 1 where it samples"),
    ("settings Decoding", "top_k", None, "ours: all tokens, as persona vectors' code; transformers' default is 50"),
    ("settings Decoding", "top_p", 1.0, "persona vectors' code"),
    ("settings Decoding", "max_prompt_tokens", None, WHOLE),
]

ROWS = TRAINING + DECODING


def test_training_and_decoding():
    check(ROWS)
