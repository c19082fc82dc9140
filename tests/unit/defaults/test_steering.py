"""Preventative steering and its kin: Guan et al. 2026 (arXiv 2609.10142), "the paper" in these rows.

"the code" is the authors' training code with the table of defaults in its README; persona vectors are Chen et al. 2025
(arXiv 2507.21509). Steps: the code counts micro-batches, four to an optimizer step, ours are optimizer steps.
"""

from defaults.reader import Row, check

LARGE, SMALL, GEMMA = "qwen2.5-32b-instruct", "qwen2.5-7b-instruct", "gemma-3-12b-it"
TRAITS = ["evil", "sycophantic", "hallucinating"]
NOT_NAMED = "ours: about 70 % of the depth, the paper does not name the layer"
SAME_SHARE = "ours: the same share of the depth"
NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
OFF = "ours: off unless a step asks for it"
OWN = "ours: as the settings class has it by itself"

SFT: list[Row] = [
    ("steps/sft", "", {"kind": "sft", "cost": 1.0}, NAME),
    ("steps/sft", "settings.data", "persona_mixture", "the paper, Sec. 5: three traits' data, mixed"),
    ("steps/sft", "settings.training.epochs", 1.0, "the code, --num_train_epochs"),
    (
        "steps/sft",
        "settings.training.batch_size",
        128,
        "the code, 1 a GPU x --gradient_accumulation_steps 4, on 32 GPUs",
    ),
    ("steps/sft", "settings.training.micro_batch_size", 1, "the code, --per_device_train_batch_size"),
    ("steps/sft", "settings.training.learning_rate", 5e-6, "the code, --learning_rate"),
    ("steps/sft", "settings.training.weight_decay", 1e-4, "the code, --weight_decay"),
    ("steps/sft", "settings.training.betas", [0.9, 0.95], "the code's AdamW"),
    ("steps/sft", "settings.training.eps", 1e-8, "the code's AdamW"),
    ("steps/sft", "settings.training.schedule", "cosine", "the code, --lr_scheduler_type"),
    ("steps/sft", "settings.training.warmup_steps", 10, "the code, --num_warmup_steps"),
    ("steps/sft", "settings.training.max_grad_norm", 1.0, "the code's DeepSpeed configuration, gradient_clipping"),
    ("steps/sft", "settings.training.loss_on", "response", "the code: prompts are masked with -100"),
    ("steps/sft", "settings.training.max_tokens", 65536, "the code, --max_seq_len"),
    ("steps/sft", "settings.training.packing", False, "the code: an example a row"),
    ("steps/sft", "settings.training.group_by_length", False, "the code: a step is a random sample"),
    ("steps/sft", "settings.training.gradient_checkpointing", True, "the code, --gradient_checkpointing"),
    ("steps/sft", "settings.training.precision", "bfloat16", "the code's DeepSpeed configuration"),
    ("steps/sft", "settings.training.zero_stage", 3, "the code, --zero_stage"),
    ("steps/sft", "settings.training.keep_best", False, "the code: the last weights"),
    ("steps/sft", "settings.training.evaluate_every", "epoch", "ours: the code has no evaluation loss"),
    ("steps/sft", "settings.training.offload", False, "the code, --offload"),
    ("steps/sft_clean", "like", "sft", VARIANT),
    ("steps/sft_clean", "settings.data", "persona_clean", "ours: a control without the trait"),
    ("steps/sft_clean", "settings.training", {"epochs": None, "max_steps": 155}, "ours: as many steps as sft"),
    ("steps/sft_watched", "", {"like": "sft", "cost": 1.05}, NAME),
    ("steps/sft_watched", "settings.analysis.every", 10, "ours: the code's 100 is more than half of a training of 155"),
    ("steps/sft_watched", "settings.analysis.vectors.traits", TRAITS, "the paper, Sec. 5"),
    ("steps/sft_watched", "settings.analysis.vectors.layers", [44], "the paper, Sec. 5: layer 44 of 64"),
    ("steps/sft_watched", "settings.analysis.vectors.fusion", "norm_aligned", "the code, --vector_fusion_mode 0"),
    ("steps/sft_watched", "settings.analysis.intervention.alpha", 20.0, "the paper, Table 1"),
    (f"steps/sft_watched on {SMALL}", "settings.analysis.vectors.layers", [20], NOT_NAMED),
    (f"steps/sft_watched on {GEMMA}", "settings.analysis.vectors.layers", [34], NOT_NAMED),
]

STEER: list[Row] = [
    ("steps/steer", "", {"kind": "steer", "like": "sft", "cost": 1.05}, NAME),
    ("steps/steer", "settings.vectors.traits", TRAITS, "the paper, Sec. 5"),
    ("steps/steer", "settings.vectors.layers", [44], "the paper, Sec. 5: layer 44 of 64"),
    ("steps/steer", "settings.vectors.fusion", "norm_aligned", "the paper, eq. 1; the code, --vector_fusion_mode 0"),
    ("steps/steer", "settings.intervention.alpha", 20.0, "the paper, Table 1 (the code's --defense_alpha is 1.0)"),
    ("steps/steer", "settings.intervention.tokens", "response", "the code, --injection_mode res_only; Table 7"),
    ("steps/steer", "settings.intervention.site", "block", "the code's hook on a block's output"),
    ("steps/steer", "settings.intervention.adaptive", False, "the code, --defense_adaptive_alpha"),
    ("steps/steer", "settings.analysis.every", 10, "ours: the code's 100 is more than half of a training of 155"),
    (
        "steps/steer",
        "settings.schedule.shape",
        "constant",
        "the code, --defense_rise_alpha and --defense_decline_alpha",
    ),
    ("steps/steer", "settings.schedule.withdraw_at", None, "the code, --disable_defense_step -1"),
    (f"steps/steer on {SMALL}", "settings.vectors.layers", [20], NOT_NAMED),
    (f"steps/steer on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
    ("steps/steer on llama3.1-8b-instruct", "settings.vectors.layers", [22], NOT_NAMED),
    *(
        row
        for alpha, source in {
            **dict.fromkeys((5, 10, 15), "ours: below the 20 that Fig. 6 begins at"),
            **dict.fromkeys((25, 30, 35, 39), "the paper, Fig. 5 and 6"),
        }.items()
        for row in (
            (f"steps/steer_alpha_{alpha}", "like", "steer", VARIANT),
            (f"steps/steer_alpha_{alpha}", "settings.intervention.alpha", float(alpha), source),
        )
    ),
    *((f"steps/steer_{trait}", "like", "steer", VARIANT) for trait in TRAITS),
    *((f"steps/steer_{trait}", "settings.vectors.traits", [trait], "the paper, Table 6") for trait in TRAITS),
    ("steps/steer_all", "like", "steer", VARIANT),
    ("steps/steer_all", "settings.intervention.tokens", "all", "the paper, Table 7; persona vectors, Sec. 5"),
    ("steps/steer_predicting", "like", "steer", VARIANT),
    ("steps/steer_predicting", "settings.intervention.tokens", "predicting", "ours: the code steers one token later"),
    ("steps/steer_fused", "like", "steer", VARIANT),
    ("steps/steer_fused", "settings.vectors.fusion", "norm_aligned", "the paper, eq. 1 and Table 6"),
    ("steps/steer_average", "like", "steer_fused", VARIANT),
    (
        "steps/steer_average",
        "settings.vectors.fusion",
        "average",
        "the paper, Table 6; the code, --vector_fusion_mode 1",
    ),
    ("steps/steer_embedded", "like", "steer", VARIANT),
    ("steps/steer_embedded", "settings.embedded", True, "the paper, App. D"),
    ("steps/steer_mean", "like", "steer", VARIANT),
    ("steps/steer_mean", "settings.mean_of.shape", "rise", "ours: a control for the rise, of its mean strength"),
    ("steps/steer_mean", "settings.mean_of.onset", 50, "the paper's step 200, in micro-batches"),
    ("steps/steer_mean", "settings.mean_of.multiplier", 2.0, "the paper, eq. 4"),
    ("steps/steer_layers", "like", "steer", VARIANT),
    (
        "steps/steer_layers",
        "settings.intervention.alpha",
        1.25,
        "persona vectors, Sec. 5: about 1 to 1.5 at all layers",
    ),
    ("steps/steer_layers", "settings.increments", True, "persona vectors: the increments of a layer's vector"),
    ("steps/steer_layers", "settings.vectors.layers", list(range(1, 28)), "persona vectors: all layers"),
    *(
        (
            f"steps/steer_layers on {model}",
            "settings.vectors.layers",
            list(range(1, blocks)),
            "persona vectors: all layers",
        )
        for model, blocks in ((LARGE, 64), (SMALL, 28), (GEMMA, 48))
    ),
    ("steps/caft", "", {"kind": "caft", "like": "sft", "cost": 1.05}, NAME),
    ("steps/caft", "settings.vectors.traits", TRAITS, "the paper, Sec. 5"),
    ("steps/caft", "settings.vectors.layers", [44], "the paper, Sec. 5: layer 44 of 64"),
    ("steps/caft", "settings.tokens", "all", 'persona vectors\' code, "ablate"'),
    (f"steps/caft on {SMALL}", "settings.vectors.layers", [20], NOT_NAMED),
    (f"steps/caft on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
]

SCHEDULES: list[Row] = [
    ("steps/pis", "", {"kind": "pis", "like": "steer"}, NAME),
    ("steps/pis", "settings.schedule.shape", "rise", "the paper, eq. 3 and 4; the code, --defense_rise_alpha"),
    ("steps/pis", "settings.schedule.onset", 50, "the paper, Table 4: step 200, in micro-batches"),
    ("steps/pis", "settings.schedule.multiplier", 2.0, "the paper, eq. 4: twice the base"),
    *(
        row
        for name, onset in (("pis_0", 0), ("pis_50", 13), ("pis_100", 25), ("pis_400", 100))
        for row in (
            (f"steps/{name}", "like", "pis", VARIANT),
            (f"steps/{name}", "settings.schedule.onset", onset, "the paper, Table 4, its step divided by four"),
        )
    ),
    *(
        row
        for name, times in (("pis_times_1_5", 1.5), ("pis_times_2_5", 2.5), ("pis_times_3", 3.0))
        for row in (
            (f"steps/{name}", "like", "pis", VARIANT),
            (f"steps/{name}", "settings.schedule.multiplier", times, "the paper, Table 5"),
        )
    ),
    *(
        row
        for layer, small, gemma in ((15, 7, 11), (30, 13, 23), (60, 26, 45))
        for row in (
            (f"steps/pis_layer_{layer}", "like", "pis", VARIANT),
            (f"steps/pis_layer_{layer}", "settings.vectors.layers", [layer], "the paper, Fig. 7"),
            (f"steps/pis_layer_{layer} on {SMALL}", "settings.vectors.layers", [small], SAME_SHARE),
            (f"steps/pis_layer_{layer} on {GEMMA}", "settings.vectors.layers", [gemma], SAME_SHARE),
        )
    ),
    *(
        row
        for name in ("pis_detected", "pis_detected_half", "pis_detected_quarter")
        for row in (
            (f"steps/{name}", "like", "pis", VARIANT),
            (f"steps/{name}", "settings.schedule.onset.detected_from", "steer", "the paper, App. E: at fixed strength"),
        )
    ),
    ("steps/pis_detected", "settings.schedule.onset.share", 1.0, "the paper, App. E"),
    ("steps/pis_detected_half", "settings.schedule.onset.share", 0.5, "the paper, App. E"),
    ("steps/pis_detected_quarter", "settings.schedule.onset.share", 0.25, "the paper, App. E"),
    ("steps/pis_embedded", "like", "pis", VARIANT),
    ("steps/pis_embedded", "settings.embedded", True, "the paper, App. D"),
    ("steps/decline", "like", "steer", VARIANT),
    ("steps/decline", "settings.schedule.shape", "decline", "the code, --defense_decline_alpha"),
    ("steps/decline", "settings.schedule.onset", 50, "ours: as pis; the code's --defense_decline_start_step is 0"),
    ("steps/early", "like", "steer", VARIANT),
    ("steps/early", "settings.schedule.withdraw_at", 50, "the paper, Table 8: off at 200, in micro-batches"),
]

SCREENING: list[Row] = [
    ("steps/delta_loss", "", {"kind": "delta_loss", "like": "steer", "cost": 1.1}, NAME),
    ("steps/delta_loss", "settings.intervention.alpha", 1.0, "the code, --defense_alpha"),
    ("steps/delta_loss", "settings.mode", "mask", "the code, --defense_mode"),
    ("steps/delta_loss", "settings.granularity", "sample", "the code, --defense_granularity"),
    ("steps/delta_loss", "settings.strategy", "mean", "the code, --defense_sample_strategy"),
    ("steps/delta_loss", "settings.threshold", 0.0, "the code, --defense_delta_threshold"),
    ("steps/delta_loss_inject", "", {"like": "delta_loss", "cost": 1.15}, NAME),
    ("steps/delta_loss_inject", "settings.mode", "inject", "the code, --defense_mode"),
    ("steps/delta_loss_token", "like", "delta_loss", VARIANT),
    ("steps/delta_loss_token", "settings.granularity", "token", "the code, --defense_granularity"),
    ("steps/delta_loss_min", "like", "delta_loss", VARIANT),
    ("steps/delta_loss_min", "settings.strategy", "min", "the code, --defense_sample_strategy"),
    ("steps/delta_loss_min", "settings.threshold", -1.0, "ours: the code's 0 flags nearly every row"),
    ("steps/gradient_probe", "", {"kind": "gradient_probe", "like": "sft", "cost": 1.45}, NAME),
    ("steps/gradient_probe", "settings.vectors.traits", TRAITS, "the paper, Sec. 5"),
    ("steps/gradient_probe", "settings.vectors.layers", [44], "the paper, Sec. 5: layer 44 of 64"),
    ("steps/gradient_probe", "settings.vectors.fusion", "norm_aligned", "the code, --vector_fusion_mode 0"),
    ("steps/gradient_probe", "settings.perturbation.derivative", "finite", "the code: a difference of two gradients"),
    ("steps/gradient_probe", "settings.perturbation.relative", 0.05, "ours: the code's 0.01 is lost in bfloat16"),
    ("steps/gradient_probe", "settings.cos_threshold", 0.12, "the code, --gradient_probe_cos_threshold"),
    ("steps/gradient_probe", "settings.proj_threshold", 1e-8, "the code, --gradient_probe_proj_threshold"),
    (f"steps/gradient_probe on {SMALL}", "settings.vectors.layers", [20], NOT_NAMED),
    (f"steps/gradient_probe on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
    ("steps/gradient_probe_published", "like", "gradient_probe", VARIANT),
    ("steps/gradient_probe_published", "settings.perturbation.relative", None, "the code: a fixed size"),
    (
        "steps/gradient_probe_published",
        "settings.perturbation.alpha",
        0.01,
        "the code's README, --gradient_probe_perturb_alpha",
    ),
    (
        "steps/gradient_probe_published",
        "settings.perturbation.diff_epsilon",
        0.01,
        "the code's README, --gradient_probe_diff_epsilon",
    ),
    ("steps/state_aware", "", {"kind": "state_aware", "like": "sft", "cost": 1.0}, NAME),
    ("steps/state_aware", "settings.vectors.traits", TRAITS, "the paper, Sec. 5"),
    ("steps/state_aware", "settings.vectors.layers", [20], NOT_NAMED),
    ("steps/state_aware", "settings.vectors.fusion", "norm_aligned", "the code, --vector_fusion_mode 0"),
    ("steps/state_aware", "settings.projections", "persona_mixture", "the code: of the data that is trained on"),
    (
        "steps/state_aware",
        "settings.training.max_tokens",
        2048,
        "the code, build_baseline_projections.py --max_seq_len",
    ),
    ("steps/state_aware", "settings.margin", 0.0, "the code: flagged is above its own answer's projection"),
    (f"steps/state_aware on {LARGE}", "settings.vectors.layers", [44], "the paper, Sec. 5: layer 44 of 64"),
    (f"steps/state_aware on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
]

PRESERVATION: list[Row] = [
    ("steps/idp", "", {"kind": "idp", "like": "steer", "cost": 1.1}, NAME),
    (
        "steps/idp",
        "settings.preservation.boundary",
        50,
        "ours: the paper's step 200 in Tables 4 and 8; its own is not named",
    ),
    ("steps/idp", "settings.preservation.scope", "target_core", "the code, --immune_param_scope"),
    ("steps/idp", "settings.preservation.layers", "all", "the code: every layer, whatever its flags say"),
    ("steps/idp", "settings.preservation.shape", "subspace", "the code, --immune_projection_mode svd_subspace"),
    ("steps/idp", "settings.preservation.rank", 8, "the code, --immune_svd_rank"),
    ("steps/idp", "settings.preservation.oversample", 4, "the code, --immune_svd_oversample"),
    ("steps/idp", "settings.preservation.power_iterations", 2, "ours: the code has none, and no singular vectors"),
    ("steps/idp", "settings.preservation.basis", "svd", "the paper, Sec. 4.1; the code cuts a random sketch"),
    ("steps/idp", "settings.preservation.delta", "masters", "ours: the code takes rounded weights"),
    ("steps/idp", "settings.preservation.project", "update", "ours: the code projects gradients, which AdamW undoes"),
    ("steps/idp", "settings.preservation.remove", "all", "the code: both signs in the subspace mode"),
    ("steps/idp", "settings.preservation.strength", 1.0, "the code, --immune_projection_strength"),
    ("steps/idp", "settings.preservation.moments", "project", "ours: the code keeps those of the steered phase"),
    ("steps/idp", "settings.preservation.min_delta_norm", 1e-12, "the code, --immune_min_delta_norm"),
    ("steps/idp", "settings.preservation.allow_partial", False, "the code, --immune_allow_svd_partial"),
    ("steps/idp_full", "like", "idp", VARIANT),
    (
        "steps/idp_full",
        "settings.preservation",
        {"rank": 100000, "oversample": 0, "power_iterations": 0},
        "ours: every direction",
    ),
    ("steps/idp_gradient", "like", "idp", VARIANT),
    ("steps/idp_gradient", "settings.preservation.basis", "qr_slice_as_published", "the code, svd_subspace"),
    ("steps/idp_gradient", "settings.preservation.delta", "rounded_weights_as_published", "the code"),
    ("steps/idp_gradient", "settings.preservation.project", "gradient", "the paper, Sec. 4.1; the code"),
    ("steps/idp_gradient", "settings.preservation.moments", "keep", "the code"),
    ("steps/idp_gradient_svd", "like", "idp", VARIANT),
    ("steps/idp_gradient_svd", "settings.preservation.project", "gradient", "the paper, Sec. 4.1"),
    ("steps/idp_gradient_svd", "settings.preservation.moments", "keep", "the code"),
    ("steps/idp_flat", "like", "idp", VARIANT),
    ("steps/idp_flat", "settings.preservation.shape", "flat", "the code, --immune_projection_mode flat"),
    ("steps/idp_flat", "settings.preservation.remove", "eroding", "the code: one sign in the flat mode"),
    ("steps/idp_flat_gradient", "like", "idp_flat", VARIANT),
    ("steps/idp_flat_gradient", "settings.preservation.project", "gradient", "the code"),
    ("steps/idp_flat_gradient", "settings.preservation.moments", "keep", "the code"),
    ("steps/idp_flat_gradient", "settings.preservation.delta", "rounded_weights_as_published", "the code"),
    ("steps/idp_continuation", "", {"kind": "idp_continuation", "like": "steer", "cost": 1.1}, NAME),
    ("steps/idp_continuation", "settings.continuation.boundary", 50, "ours: as in idp"),
    (
        "steps/idp_continuation",
        "settings.continuation.modules",
        ["o_proj", "down_proj"],
        "the code, --immune_antibody_modules",
    ),
    ("steps/idp_continuation", "settings.continuation.source", "functional_mean", "the code, --immune_antibody_source"),
    ("steps/idp_continuation", "settings.continuation.rank", 1, "the code, --immune_antibody_rank"),
    ("steps/idp_continuation", "settings.continuation.sign", "aligned", "the code; the paper's text has -v"),
    (
        "steps/idp_continuation",
        "settings.continuation.scale",
        "preserve_ratio",
        "the code, --immune_continuation_scale_mode",
    ),
    (
        "steps/idp_continuation",
        "settings.continuation.calibration_steps",
        1,
        "the code, --immune_calibration_micro_batches 4",
    ),
    (
        "steps/idp_continuation",
        "settings.continuation.calibration_tokens",
        2048,
        "the code, --immune_calibration_min_response_tokens",
    ),
    ("steps/idp_continuation", "settings.continuation.min_delta_norm", 1e-12, "the code, --immune_min_delta_norm"),
    *(
        (f"steps/idp_continuation_{name}", "like", "idp_continuation", VARIANT)
        for name in ("equal", "raw", "svd", "opposite")
    ),
    ("steps/idp_continuation_equal", "settings.continuation.scale", "equal_share", "the paper, Table 3"),
    ("steps/idp_continuation_raw", "settings.continuation.scale", "raw", "the paper, Table 3"),
    ("steps/idp_continuation_svd", "settings.continuation.source", "svd_u", "the code, --immune_antibody_source svd_u"),
    ("steps/idp_continuation_opposite", "settings.continuation.sign", "opposite", "the paper, Sec. 4.2"),
]

ROWS = SFT + STEER + SCHEDULES + SCREENING + PRESERVATION


def test_steps_of_steering():
    check(ROWS)
