"""TAR, MLAC-AR and SOPHON-AR (Tamirisa et al. 2024, arXiv 2408.00761, "the paper"; "the code" is the authors')."""

from typing import Any

import pytest

from defaults.reader import Row, check, whole

NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
SCRIPT = "the code, run_tar_bio.sh"
LEFT_OPEN = "ours: as for biosecurity, which the paper leaves open"
BENCH = "TamperBench (arXiv 2602.06911), from the paper's table of hyper-parameters"
MACHINE = "ours: eight cards of 80 GB, as the paper has them"


def adversary(**stated: str) -> dict[str, Any]:
    """An entry of the list with its defaults, which have rows of their own."""
    plain = {"side": None, "before": None, "switch": [6.0, 3.0], "held_out": None, "probability": 1.0}
    return plain | stated


CLASSES: list[Row] = [
    ("settings AdversarySettings", "side", None, "ours: most data are no preferences"),
    ("settings AdversarySettings", "before", None, "ours: plain fine-tuning on one data set"),
    ("settings AdversarySettings", "switch", (6.0, 3.0), "the code, switching_point_coeffs"),
    ("settings AdversarySettings", "held_out", None, "the code: one held-out loader for all attacks"),
    ("settings AdversarySettings", "probability", 1.0, "the code, adversary_dist_types: all alike"),
    ("settings InnerSettings", "steps", 64, "the paper, App. E.2"),
    ("settings InnerSettings", "every", 4, "the paper, App. C.4"),
    ("settings InnerSettings", "trajectories", 1, "the code, tar_num_tasks_sampled of every script"),
    ("settings InnerSettings", "optimizer", "adamw", "the code: torch.optim.AdamW per trajectory"),
    ("settings InnerSettings", "weight_decay", 0.01, "the code: torch's default"),
    ("settings WeightingSettings", "shape", "exponential", "the code, use_weighting_schedule"),
    ("settings WeightingSettings", "rate", 0.0625, "the code, schedule_lambda: 4/64"),
    ("settings WeightingSettings", "normalised", True, "ours: the code's sum of 4.438 makes λ_TR = 4 count 17.75"),
    ("settings ResistanceSettings", "loss", "entropy", "the paper, Sec. 4 and App. C.3"),
    ("settings ResistanceSettings", "weight", 4.0, SCRIPT),
    ("settings ResistanceSettings", "clamped", True, "the paper, App. G.3: MLAC-AR diverges without"),
    ("settings ResistanceSettings", "count_padding", False, "ours: the code averages over padding, which says nothing"),
    ("settings ResistanceSettings", "beta", 0.1, "the code, DPOLoss"),
    ("settings ResistanceSettings", "lower_bound", None, "the code, --unbounded of every script"),
    ("settings RetainSettings", "weight", 1.0, SCRIPT),
    ("settings RetainSettings", "representations", True, "the code, retain_representations"),
    ("settings RetainSettings", "norm", "plain", "the code: not squared, though Eq. 2 squares it"),
    ("settings RetainSettings", "reference", {"of": "base"}, "the code, retain_model_name: the original chat model"),
    ("settings ReferenceSettings", "of", "parent", "ours: what is trained on, unless a step says otherwise"),
    ("settings TamperingSettings", "held_out_split", "held_out", "ours: the name of the 20 % of App. E.2"),
    ("settings TamperingSettings", "weighting", {}, "as WeightingSettings"),
    ("settings TamperingSettings", "resistance", {}, "as ResistanceSettings"),
    ("settings TamperingSettings", "retain", {}, "as RetainSettings"),
    ("settings TamperingSettings", "alternating", False, "the paper, Alg. 1: both gradients in each step"),
    ("settings TamperingSettings", "park_optimizer", False, "ours: on one device there is nowhere to park"),
]  # fmt: skip

BIO: list[Row] = [
    ("steps/tar", "", {"kind": "tar", "cost": 1.0}, NAME),
    ("steps/tar", "settings.data", "bio_retain_mix", "the paper, App. E.2: Pile-bio Retain and Magpie-Align"),
    ("steps/tar", "settings.held_out", "bio_forget", "the code: the test parts of Pile and Camel"),
    ("steps/tar", "settings.training", {
        "max_steps": 750, "batch_size": 64, "micro_batch_size": 8, "learning_rate": 2e-5, "warmup_steps": 32,
    }, SCRIPT),
    ("steps/tar", "settings.training.optimizer", "schedulefree_adamw", "the code"),
    ("steps/tar", "settings.training.schedule", "constant", "schedule-free AdamW has none"),
    ("steps/tar", "settings.training", {"weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8}, "its defaults"),
    ("steps/tar", "settings.training.max_grad_norm", 0.0, "the code: no clipping"),
    ("steps/tar", "settings.training.loss_on", "all", "the code: prompts are trained, too"),
    ("steps/tar", "settings.training.max_tokens", 256, "the paper, App. E.1"),
    ("steps/tar", "settings.training", {
        "packing": False, "group_by_length": False, "gradient_checkpointing": False,
    }, "the code: random batches of padded rows, no activation checkpointing"),
    ("steps/tar", "settings.training.precision", "bfloat16", "the code, FSDP's mixed precision"),
    ("steps/tar", "settings.training.zero_stage", 3, "the paper, App. C.5"),
    ("steps/tar", "settings.training", {"keep_best": False, "evaluate_every": None}, "the code: the last weights"),
    ("steps/tar", "settings.adversaries", [
        adversary(name="forget", data="pile_bio_forget"),
        adversary(name="camel", data="camel_bio_forget"),
        adversary(name="retain_forget", data="pile_bio_forget", before="pile_bio_retain"),
    ], "the paper, App. E.2; the code for what the third trains on"),
    ("steps/tar", "settings.inner", {"steps": 64, "every": 4, "trajectories": 1}, "the paper, App. C.4 and E.2"),
    ("steps/tar", "settings.inner.learning_rates", [2e-5, 4e-5], "the paper, App. E.2"),
    ("steps/tar", "settings.inner", {"batch_size": 32, "micro_batch_size": 4}, SCRIPT),
    ("steps/tar", "settings.inner", {"optimizer": "adamw", "weight_decay": 0.01}, "the code: torch.optim.AdamW"),
    ("steps/tar", "settings.weighting", {"shape": "exponential", "rate": 0.0625}, SCRIPT),
    ("steps/tar", "settings.weighting.normalised", True, "ours: so that λ_TR means what it says"),
    ("steps/tar", "settings.resistance", {"loss": "entropy", "weight": 4.0}, "the paper, App. D.4; the code"),
    ("steps/tar", "settings.resistance.count_padding", False, "ours: padding is no text"),
    ("steps/tar", "settings.retain", {"weight": 1.0, "representations": True, "norm": "plain"}, SCRIPT),
    ("steps/tar", "settings.retain.reference.of", "base", "the code, retain_model_name"),
    ("steps/tar", "settings.park_optimizer", True, "the paper, App. C.5: the outer optimizer is offloaded"),
    ("steps/tar_bio", "like", "tar", VARIANT),
]  # fmt: skip

DOMAINS: list[Row] = [
    ("steps/tar_chem", "like", "tar", VARIANT),
    ("steps/tar_chem", "settings", {"data": "chem_retain_mix", "held_out": "chem_forget"}, "the paper, App. E.2"),
    ("steps/tar_chem", "settings.adversaries", [
        adversary(name="forget", data="chem_forget"),
        adversary(name="retain", data="chem_retain_mix"),
        adversary(name="retain_forget", data="chem_forget", before="chem_retain_mix"),
    ], "the paper, App. E.2"),
    ("steps/tar_chem", "settings.resistance.weight", 3.0, "the paper, App. E.2"),
    ("steps/tar_cyber", "like", "tar", VARIANT),
    ("steps/tar_cyber", "settings", {"data": "cyber_retain_mix", "held_out": "cyber_forget"}, "the paper, App. E.2"),
    ("steps/tar_cyber", "settings.adversaries", [
        adversary(name="forget", data="cyber_forget"),
        adversary(name="retain", data="cyber_retain_mix"),
        adversary(name="retain_forget", data="cyber_forget", before="cyber_retain_mix"),
    ], "the paper, App. E.2"),
    ("steps/tar_refusal", "", {"like": "tar", "cost": 1.2}, VARIANT),
    ("steps/tar_refusal", "settings", {"data": "magpie", "held_out": "hh_refusals"}, "the paper, App. E.2"),
    ("steps/tar_refusal", "settings.training", {"max_steps": 100, "learning_rate": 6e-5}, BENCH),
    ("steps/tar_refusal", "settings.training", {"max_tokens": 512}, "the code, of the pairs"),
    ("steps/tar_refusal", "settings.training.micro_batch_size", 2, BENCH),
    ("steps/tar_refusal", "settings.adversaries", [adversary(name="harmful", data="hh_refusals", side="rejected")],
     "the paper, App. E.2: SFT on rejected completions"),
    ("steps/tar_refusal", "settings.inner.learning_rates", [2e-6, 2e-5, 4e-5], BENCH),
    ("steps/tar_refusal", "settings.resistance", {"loss": "dpo", "beta": 0.1}, "the paper, App. C.3; the code"),
    ("steps/tar_refusal", "settings.resistance.weight", 0.1, BENCH),
    ("steps/refusal_recovery", "", {"kind": "sft"}, NAME),
    ("steps/refusal_recovery", "settings.data", "magpie", "the paper, App. E.2"),
    ("steps/refusal_recovery", "settings.training.max_steps", 100, "the paper, App. E.2"),
    ("steps/refusal_recovery", "settings.training", {"batch_size": 64, "learning_rate": 2e-5, "warmup_steps": 10},
     "TamperBench's guess; the paper gives none"),
    ("steps/refusal_recovery", "settings.training.max_tokens", 1024, "the code, of Magpie beside pairs"),
    ("steps/refusal_recovery", "settings.training", {
        "optimizer": "adamw", "schedule": "constant", "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8,
        "max_grad_norm": 1.0, "loss_on": "response", "packing": False, "group_by_length": False, "keep_best": False,
        "evaluate_every": None,
    }, "ours: the trainer's defaults, which nobody reports to have changed"),
    ("steps/refusal_recovery", "settings.training", {
        "micro_batch_size": 2, "gradient_checkpointing": True, "precision": "bfloat16", "zero_stage": 3,
    }, MACHINE),
]  # fmt: skip

OTHERS: list[Row] = [
    ("steps/tar_published", "like", "tar", VARIANT),
    ("steps/tar_published", "settings.inner.learning_rates", [2e-6, 2e-5, 4e-5], SCRIPT),
    ("steps/tar_published", "settings.weighting.normalised", False, "the code: 4 · 4.438 = 17.75"),
    ("steps/tar_published", "settings.resistance.count_padding", True, "the code, max_entropy_loss"),
    ("steps/tar_lambda_1", "like", "tar", VARIANT),
    ("steps/tar_lambda_1", "settings.resistance.weight", 1.0, "the paper, App. D.4, Table 6"),
    ("steps/tar_cross_entropy", "like", "tar", VARIANT),
    ("steps/tar_cross_entropy", "settings.resistance", {"loss": "negative_cross_entropy", "clamped": False},
     "the paper, App. C.3"),
    ("steps/tar_short", "", {"like": "tar"}, VARIANT),
    ("steps/tar_short", "settings.inner.steps", 16, "ours: a quarter of the paper's"),
    ("steps/tar_short", "settings.weighting.rate", 0.25, "ours: 4/K, as with the paper's K"),
    ("steps/tar_without_switch", "like", "tar", VARIANT),
    ("steps/tar_without_switch", "settings.adversaries", [
        adversary(name="forget", data="pile_bio_forget"), adversary(name="camel", data="camel_bio_forget"),
    ], "the paper, App. D.2"),
    ("steps/mlac", "like", "tar", VARIANT),
    ("steps/mlac", "settings.resistance", {"loss": "negative_cross_entropy", "clamped": True}, "the paper, App. G.3"),
    ("steps/sophon", "like", "tar", VARIANT),
    ("steps/sophon", "settings.inner.steps", 50, "SOPHON (arXiv 2404.12699): K = 50"),
    ("steps/sophon", "settings.inner.every", 2, "ours: K has to be a multiple for the last step to count"),
    ("steps/sophon", "settings.weighting.shape", "uniform", "ours: SOPHON's γ are not given"),
    ("steps/sophon", "settings.resistance.loss", "inverse_cross_entropy", "SOPHON: one of its two"),
    ("steps/sophon", "settings.alternating", True, "SOPHON: in turn with normal training"),
    ("steps/sophon_kl", "like", "sophon", VARIANT),
    ("steps/sophon_kl", "settings.resistance.loss", "kl_from_uniform", "SOPHON: the other of its two"),
]  # fmt: skip

ROWS = [*CLASSES, *BIO, *DOMAINS, *OTHERS]


def test_values_are_those_of_their_sources():
    check(ROWS)


@pytest.mark.parametrize(
    ("step", "passes"),
    # 750 outer steps of 64 attack batches, 16 of resistance, one of the retain set (the authors to their reviewers)
    [("tar", 60_750), ("tar_chem", 60_750), ("tar_cyber", 60_750), ("tar_refusal", 8_100), ("tar_short", 15_750)],
)
def test_what_full_scale_costs_in_batches(step, passes):
    settings = whole(f"steps/{step}")["settings"]
    inner = settings["inner"]
    per_step = inner["steps"] + inner["steps"] // inner["every"] + 1
    assert settings["training"]["max_steps"] * per_step == passes


def test_the_batches_divide_over_eight_cards():
    settings = whole("steps/tar")["settings"]
    assert settings["training"]["batch_size"] == 8 * settings["training"]["micro_batch_size"]
    assert settings["inner"]["batch_size"] == 8 * settings["inner"]["micro_batch_size"]


def test_the_start_of_a_retain_set_is_read_once():
    """63,639 rows (42,426 + 21,213) of which 750 batches of 64 see three quarters."""
    seen = 750 * whole("steps/tar")["settings"]["training"]["batch_size"]
    assert seen / (42_426 + 42_426 // 2) == pytest.approx(0.754, abs=1e-3)
