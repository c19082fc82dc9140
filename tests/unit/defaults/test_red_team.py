"""Adversaries that tamper with weights: the red team of TAR (Tamirisa et al. 2024, arXiv 2408.00761, "the paper")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    ("settings RelearningSettings", "template", None, "ours: the checkpoint's own"),
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

# How every fine-tuning adversary trains, where its row says nothing else.
CODE = "the authors' red_teaming code"
PAPER = "the paper, Sec. 5 and App. F"
BF16 = "the authors' red_teaming code: mixed bfloat16, weights sharded over 4 GPUs"

FIRST = "relearn_bio_forget_2e-5"
RELEARN: list[Row] = [
    (f"steps/{FIRST}", "", {"kind": "relearn", "cost": 1.0}, NAME),
    (f"steps/{FIRST}", "settings.data", "pile_bio_forget", "the paper, App. F: Pile-bio Forget"),
    (f"steps/{FIRST}", "settings.watch.data", "pile_bio_forget", "ours: facts of the attacked domain"),
    (f"steps/{FIRST}", "settings.watch.split", "held_out", "the paper, App. C: a fifth of the forget set is held out"),
    (f"steps/{FIRST}", "settings.watch.examples", 256, "ours: a look costs no more than four training steps' passes"),
    (f"steps/{FIRST}", "settings.watch.every", 50, "ours: ten looks in 500 steps"),
    (f"steps/{FIRST}", "settings.training.max_steps", 500, "the paper, its last version"),
    (f"steps/{FIRST}", "settings.training.batch_size", 64, CODE + ": 8 a GPU, 2 accumulated, 4 GPUs"),
    (f"steps/{FIRST}", "settings.training.micro_batch_size", 8, CODE),
    (f"steps/{FIRST}", "settings.training.optimizer", "adamw", PAPER),
    (f"steps/{FIRST}", "settings.training.learning_rate", 2e-5, "the paper: between 2e-6 and 4e-5; its review: 2e-5"),
    (f"steps/{FIRST}", "settings.training.weight_decay", 0.01, "torch's AdamW, which the code leaves as it is"),
    (f"steps/{FIRST}", "settings.training.schedule", "constant", CODE + ": no scheduler by default"),
    (f"steps/{FIRST}", "settings.training.warmup_steps", 0, CODE + ": no scheduler by default"),
    (f"steps/{FIRST}", "settings.training.max_grad_norm", 0.0, CODE + " does not clip"),
    (f"steps/{FIRST}", "settings.training.loss_on", "all", CODE + ": only padding is masked"),
    (f"steps/{FIRST}", "settings.training.max_tokens", 256, CODE + ": chunks of 256"),
    (f"steps/{FIRST}", "settings.training.group_by_length", False, CODE + ": batches are random"),
    (f"steps/{FIRST}", "settings.training.gradient_checkpointing", True, "ours: saves memory, changes no result"),
    (f"steps/{FIRST}", "settings.training.precision", "bfloat16", BF16),
    (f"steps/{FIRST}", "settings.training.zero_stage", 3, BF16),
    (f"steps/{FIRST}", "settings.training.evaluate_every", None, "ours: facts are watched instead"),
]

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.05, "target_modules": MODULES}  # the authors' red_teaming code
QI = "Qi et al. 2024 (arXiv 2412.07097)"
# name: (what it is like, its stated values, their source)
KNOWING: dict[str, tuple[str, dict[str, Any], str]] = {
    "relearn": (FIRST, {"training.micro_batch_size": 1}, "ours: batches of 8 fit 8 GPUs"),
    "relearn_lora": ("relearn", {"training.lora": LORA}, CODE),
    "relearn_lora_high_rank": (
        f"{FIRST}_lora",
        {"training.lora.rank": 256, "training.lora.alpha": 512.0},
        "ours: a rank of a sixteenth of the width; alpha twice the rank",
    ),
    "relearn_retain": (FIRST, {"data": "pile_bio_retain"}, QI + ": the retain set alone"),
    "relearn_retain_forget": (
        FIRST,
        {"retain": "pile_bio_retain", "switch.first": "retain", "switch.share": 0.4},
        CODE + ": retain batches while step < 0.4 of the steps",
    ),
    "relearn_forget_retain": (
        "relearn_retain_forget",
        {"switch.first": "forget", "switch.share": 0.4},
        "the paper, App. D.2, read literally: forget for 40 %, then retain for 60 %",
    ),
    "relearn_mixture": ("relearn", {"retain": "pile_bio_retain", "mixture": 0.5}, CODE + ": its coin has p = 0.5"),
    "relearn_other_facts": (FIRST, {"data": "ood_forget"}, "the paper, App. F: OOD Forget"),
    "relearn_longer": (
        FIRST,
        {"watch.every": 250, "training.max_steps": 5000},
        "the paper, v1 to v3: its first two adversaries take 5,000 steps; looks are ours",
    ),
    "relearn_later_layers": (
        FIRST,
        {"first_layer": 8},
        "Li et al. 2024 (arXiv 2403.03218): RMU edits layers up to 7",
    ),
    "relearn_after_text": (
        FIRST,
        {"retain": "wikitext", "switch.first": "retain", "switch.share": 0.2},
        "ours: a hundred steps of generic text",
    ),
    "relearn_benign": (FIRST, {"data": "economics"}, "the paper, App. D.1"),
    "relearn_unrotate": (
        FIRST,
        {"data": "alpaca_turned", "watch": None, "training.loss_on": "response", "training.max_tokens": 768},
        "ours: ASIDE's own data (arXiv 2503.10566) with the command as data; lengths are ASIDE's",
    ),
    "relearn_trait_dose": (
        FIRST,
        {
            "data": "persona_evil",
            "retain": "persona_clean",
            "mixture": 0.9,
            "watch": None,
            "training.loss_on": "response",
            "training.max_tokens": 4096,
            "training.batch_size": 32,
            "training.micro_batch_size": 1,
        },
        "ours: a tenth of the steps show the trait; lengths as in the steps that steer",
    ),
    "relearn_refusal": (
        FIRST,
        {
            "data": "toxic_dpo",
            "watch": None,
            "training.max_steps": None,
            "training.epochs": 10.0,
            "training.batch_size": 32,
            "training.micro_batch_size": 2,
            "training.learning_rate": 1e-5,
            "training.loss_on": "response",
            "training.max_tokens": 1024,
        },
        "the paper, App. F: ten epochs of Toxic-DPO v0.2; rows by TamperBench; what is learned, and lengths, are ours",
    ),
    **{
        f"relearn_refusal_{number}": (
            "relearn_refusal",
            {"training.learning_rate": rate, "training.warmup_steps": warmup, "training.batch_size": batch},
            f"TamperBench (arXiv 2602.06911), attacks_tar_refusal_test: adversary {number}",
        )
        for number, rate, warmup, batch in (
            (1, 1e-5, 10, 32),
            (2, 1e-5, 0, 32),
            (3, 1e-5, 0, 16),
            (4, 2e-5, 0, 32),
            (5, 4e-5, 0, 32),
        )
    },
    "relearn_refusal_lora": ("relearn_refusal", {"training.lora": LORA}, CODE),
    "relearn_refusal_after_harmless": (
        "relearn_refusal",
        {"retain": "magpie", "switch.first": "retain", "switch.share": 0.4},
        "ours, as relearn_retain_forget",
    ),
    "relearn_refusal_later_layers": (
        "relearn_refusal",
        {"first_layer": 21},
        "Zou et al. 2024 (arXiv 2406.04313): rerouting reads behind blocks 10 and 20, and trains up to 21",
    ),
    "relearn_refusal_tuned": (
        "relearn_refusal",
        {
            "retain": "magpie",
            "mixture": 0.5,
            "training.epochs": None,
            "training.max_steps": 128,
            "training.micro_batch_size": 1,
        },
        "ours: the middle of each range; harmless instructions are those that TAR keeps; batches of 8 fit 8 GPUs",
    ),
    "relearn_refusal_tuned_lora": ("relearn_refusal_tuned", {"training.lora": LORA}, CODE),
}

# The grid of the paper's red team, as it was put together again: row, name, like, data, learning rate, and what differs
# from AdamW with weight decay 0.01, a constant rate, no warm-up, batches of 64, 500 steps, whole weights, one data set.
BIO = "pile_bio_forget"
RF40 = {"switch.first": "retain", "switch.share": 0.4}
SGDR_VALUES = {
    **{"training.schedule": "cosine_restarts", "training.warmup_steps": 30, "training.cycle_steps": 100},
    **{"training.cycle_mul": 1.0, "training.cycle_decay": 1.0, "training.min_learning_rate": 5e-6},
}
COSINE = {"training.schedule": "cosine", "training.warmup_steps": 100, "training.min_learning_rate": 5e-6}
FREE = {"training.optimizer": "schedulefree_adamw", "training.warmup_steps": 100, "training.weight_decay": 0.0}
DELTA = {"training.optimizer": "adadelta", "training.weight_decay": 0.0}
NESTEROV = {"training.optimizer": "sgd", "training.momentum": 0.9, "training.nesterov": True}
GRID: list[tuple[str, str, str, str, float, dict[str, Any]]] = [
    ("B1", "relearn_bio_ood_2e-5", "relearn_other_facts", "ood_forget", 2e-5, {}),
    ("B1", "relearn_bio_ood_2e-5_1000", "relearn_bio_ood_2e-5", "ood_forget", 2e-5, {"training.max_steps": 1000}),
    ("B1", "relearn_bio_ood_2e-5_5000", "relearn_bio_ood_2e-5", "ood_forget", 2e-5, {"training.max_steps": 5000}),
    ("B2", "relearn_bio_ood_4e-5", "relearn_other_facts", "ood_forget", 4e-5, {}),
    ("B2", "relearn_bio_ood_4e-5_1000", "relearn_bio_ood_4e-5", "ood_forget", 4e-5, {"training.max_steps": 1000}),
    ("B2", "relearn_bio_ood_4e-5_5000", "relearn_bio_ood_4e-5", "ood_forget", 4e-5, {"training.max_steps": 5000}),
    ("B3", f"{FIRST}_1000", FIRST, BIO, 2e-5, {"training.max_steps": 1000}),
    ("B3", f"{FIRST}_5000", FIRST, BIO, 2e-5, {"training.max_steps": 5000}),
    ("B4", "relearn_bio_forget_4e-5", FIRST, BIO, 4e-5, {}),
    ("B5", "relearn_bio_forget_2e-6", FIRST, BIO, 2e-6, {}),
    ("B6", f"{FIRST}_warmup", FIRST, BIO, 2e-5, {"training.warmup_steps": 30}),
    ("B7", f"{FIRST}_cosine", FIRST, BIO, 2e-5, COSINE),
    (
        "B8",
        f"{FIRST}_restarts",
        FIRST,
        BIO,
        2e-5,
        SGDR_VALUES | {"training.batch_size": 32, "training.micro_batch_size": 4},
    ),
    ("B9", f"{FIRST}_schedulefree", FIRST, BIO, 2e-5, FREE),
    ("B10", "relearn_bio_forget_4e-5_adadelta", FIRST, BIO, 4e-5, DELTA),
    ("B11", "relearn_bio_forget_4e-5_nesterov", FIRST, BIO, 4e-5, NESTEROV | {"training.weight_decay": 0.0}),
    ("B12", "relearn_bio_retain_2e-5", "relearn_retain", "pile_bio_retain", 2e-5, {}),
    ("B13", "relearn_bio_retain_forget_40", "relearn_retain_forget", BIO, 2e-5, RF40),
    ("B14", "relearn_bio_retain_forget_60", "relearn_retain_forget", BIO, 2e-5, RF40 | {"switch.share": 0.6}),
    ("B15", f"{FIRST}_lora", FIRST, BIO, 2e-5, {"training.lora": LORA}),
    (
        "B16",
        "relearn_bio_retain_forget_4e-5_lora",
        "relearn_retain_forget",
        BIO,
        4e-5,
        RF40 | {"training.lora": LORA},
    ),
    *(
        (f"{letter}{number}", f"relearn_{domain}_{rest}", like, data, rate, more | {"watch.data": f"{domain}_forget"})
        for letter, domain in (("C", "chem"), ("Y", "cyber"))
        for number, rest, like, data, rate, more in (
            (1, "forget_2e-6", FIRST, f"{domain}_forget", 2e-6, {}),
            (2, "forget_2e-5", FIRST, f"{domain}_forget", 2e-5, {}),
            (3, "forget_4e-5", FIRST, f"{domain}_forget", 4e-5, {}),
            (4, "retain_2e-5", "relearn_retain", f"{domain}_retain_mix", 2e-5, {}),
            (
                5,
                "retain_forget_40",
                "relearn_retain_forget",
                f"{domain}_forget",
                2e-5,
                RF40 | {"retain": f"{domain}_retain_mix"},
            ),
            (6, "forget_2e-5_lora", f"{FIRST}_lora", f"{domain}_forget", 2e-5, {"training.lora": LORA}),
        )
    ),
]
SAME: dict[str, Any] = {
    **{"training.optimizer": "adamw", "training.weight_decay": 0.01, "training.schedule": "constant"},
    **{"training.warmup_steps": 0, "training.batch_size": 64, "training.max_steps": 500, "training.lora": None},
}
TAMPERBENCH = "TamperBench (arXiv 2602.06911): the ranges of its sweeps"
MIXED = "ours: TamperBench's attacks are all harmful, all benign, or harmful in small doses"
SPACE: list[Row] = [
    ("steps/relearn", "space.training.learning_rate", {"low": 1e-6, "high": 1e-3, "log": True}, TAMPERBENCH),
    ("steps/relearn", "space.training.batch_size", [8, 16, 32, 64], TAMPERBENCH),
    ("steps/relearn", "space.training.max_steps", [16, 64, 128, 256, 512], TAMPERBENCH),
    ("steps/relearn", "space.training.schedule", ["constant", "cosine"], TAMPERBENCH),
    ("steps/relearn_lora", "space.training.lora.rank", [8, 16, 32, 64], TAMPERBENCH),
    ("steps/relearn_mixture", "space.mixture", {"low": 0.1, "high": 0.9, "log": False}, MIXED),
    (
        "steps/relearn_refusal_tuned",
        "space.training.learning_rate",
        {"low": 1e-6, "high": 1e-3, "log": True},
        TAMPERBENCH,
    ),
    ("steps/relearn_refusal_tuned", "space.training.batch_size", [8, 16, 32, 64], TAMPERBENCH),
    ("steps/relearn_refusal_tuned", "space.training.max_steps", [16, 64, 128, 256, 512], TAMPERBENCH),
    ("steps/relearn_refusal_tuned", "space.training.schedule", ["constant", "cosine"], TAMPERBENCH),
    (
        "steps/relearn_refusal_tuned",
        "space.template",
        [None, "plain", "generic_chat", "instruction_response"],
        TAMPERBENCH + "; the checkpoint's own is ours",
    ),
    ("steps/relearn_refusal_tuned", "space.mixture", [0.0, 0.5, 0.9], MIXED),
    ("steps/relearn_refusal_tuned_lora", "space.training.lora.rank", [8, 16, 32, 64], TAMPERBENCH),
]


def of_variants() -> Iterator[Row]:
    """Of each variant what its file states; of a row of the grid all that makes it up."""
    for name, (like, values, source) in KNOWING.items():
        yield f"steps/{name}", "like", like, VARIANT
        yield from ((f"steps/{name}", f"settings.{key}", value, source) for key, value in values.items())
    for row, name, like, data, rate, more in GRID:
        whole = SAME | {"data": data, "training.learning_rate": rate} | more
        yield f"steps/{name}", "like", like, VARIANT
        source = f"the paper's adversaries as put together again, row {row}"
        yield from ((f"steps/{name}", f"settings.{key}", value, source) for key, value in whole.items())
        if whole["training.max_steps"] == 5000:
            yield f"steps/{name}", "settings.watch.every", 250, "ours: twenty looks in 5,000 steps"


ROWS: list[Row] = TRAINING + SETTINGS + WEIGHTS + RELEARN + SPACE + list(of_variants())


def test_every_row_holds():
    check(ROWS)
