"""Attacks on refusals: HERETIC (p-e-w/heretic, commit 20b7bf7), ICONOCLAST (Haadesx/ICONOCLAST) and Arditi et al. 2024.

"its document" is the technical details of ICONOCLAST's Llama-3.1-8B model; "their code" is andyrdt/refusal_direction.
Extended refusals are arXiv 2505.19056.
"""

from bulwark.abliteration.measure.markers import DISCLAIMERS, RULES
from defaults.reader import Row, check

COST = "ours: a name, and a job's expected time in the stage of answering"
VARIANT = "ours: what this is a variant of"
OFF = "ours: off unless a step asks for it"

FIRST = {"harmful_directions": 400, "harmless_directions": 400, "harmful_search": 100, "harmless_search": 100}

HERETIC: list[Row] = [
    ("steps/heretic", "", {"kind": "heretic", "cost": 1.0}, COST),
    ("steps/heretic", "settings.prompts.harmful", "harmful_behaviors", "HERETIC, bad_prompts"),
    ("steps/heretic", "settings.outcome.nothing_to_remove", "unedited", "ours: a red team's table has the cell"),
    ("steps/refusal_direction", "settings.outcome.nothing_to_remove", "unedited", "ours: as heretic"),
    ("steps/heretic", "settings.prompts.harmless", "harmless_alpaca", "HERETIC, good_prompts"),
    (
        "steps/heretic",
        "settings.prompts.counts",
        FIRST,
        "HERETIC, good_prompts and bad_prompts: train[:400], test[:100]",
    ),
    ("steps/heretic", "settings.dtype", "bfloat16", 'HERETIC, dtypes: "auto", the checkpoint\'s own'),
    ("steps/heretic", "settings.directions.methods", ["mean"], "HERETIC: difference of means"),
    ("steps/heretic", "settings.directions.winsorise", 1.0, "HERETIC, winsorization_quantile"),
    ("steps/heretic", "settings.directions.orthogonalise", True, "HERETIC 1.4, orthogonalize_direction"),
    (
        "steps/heretic",
        "settings.directions.final_norm",
        True,
        "HERETIC: the last layer's residuals as Transformers gives them",
    ),
    ("steps/heretic", "settings.directions.protect", "measured", "HERETIC: the mean of the layer that is measured"),
    ("steps/heretic", "settings.edit.normalization", "full", "HERETIC 1.4, row_normalization"),
    ("steps/heretic", "settings.edit.adapter_rank", 3, "HERETIC, full_normalization_lora_rank"),
    ("steps/heretic", "settings.edit.through_norms", False, "HERETIC: norms after a sublayer are not accounted for"),
    ("steps/heretic", "settings.edit.components", ["attention", "mlp"], "HERETIC: attn.o_proj and mlp.down_proj"),
    ("steps/heretic", "settings.space.scopes", ["global", "per layer"], "HERETIC, direction_scope"),
    ("steps/heretic", "settings.space.direction_index", [0.4, 0.9], "HERETIC, direction_index"),
    ("steps/heretic", "settings.space.max_weight.attention", [0.8, 1.5], "HERETIC, max_weight"),
    ("steps/heretic", "settings.space.max_weight.mlp", [-0.25, 1.5], "HERETIC, max_weight of the MLP"),
    ("steps/heretic", "settings.space.max_weight_position", [0.6, 1.0], "HERETIC, max_weight_position"),
    ("steps/heretic", "settings.space.min_weight", [0.0, 1.0], "HERETIC, min_weight"),
    ("steps/heretic", "settings.space.min_weight_distance", 0.6, "HERETIC, min_weight_distance"),
    ("steps/heretic", "settings.space.shortest_distance", 1.0, "HERETIC, min_weight_distance"),
    ("steps/heretic", "settings.objectives.relative", False, "HERETIC, KeywordRate: a rate of all prompts"),
    ("steps/heretic", "settings.objectives.kl_target", 0.0, "HERETIC, which has dropped it after 1.4.0"),
    ("steps/heretic", "settings.search.trials", 200, "HERETIC, n_trials"),
    ("steps/heretic", "settings.search.startup_trials", 60, "HERETIC, n_startup_trials"),
    ("steps/heretic", "settings.search.ei_candidates", 128, "HERETIC, n_ei_candidates of its sampler"),
    ("steps/heretic", "settings.search.trials_per_batch", 4, "ours: HERETIC measures one by one"),
    ("steps/heretic", "settings.search.max_new_tokens", 100, "HERETIC, max_response_length"),
    ("steps/heretic", "settings.search.rule", "heretic", "HERETIC, keyword_markers"),
    ("steps/heretic", "settings.search", {"kl_gate": None, "block": None}, "HERETIC: every trial answers all prompts"),
    ("steps/heretic", "settings.selection.kl_at_most", 0.1, "ours: HERETIC leaves the choice to its user"),
    ("steps/heretic", "settings.prompts.after", 0, "HERETIC: residuals of the prompt"),
    ("steps/heretic_later", "like", "heretic", VARIANT),
    ("steps/heretic_later", "settings.prompts.after", 32, "ours: as refusal_direction_later"),
    ("steps/heretic_1_4", "like", "heretic", VARIANT),
    ("steps/heretic_1_4", "settings.space.max_weight.attention", [0.8, 1.5], "HERETIC 1.4.0, main.py: max_weight"),
    ("steps/heretic_1_4", "settings.space.max_weight.mlp", [0.8, 1.5], "HERETIC 1.4.0, main.py: max_weight"),
    ("steps/heretic_1_4", "settings.objectives.relative", True, "HERETIC 1.4.0, evaluator.py: over base_refusals"),
    ("steps/heretic_1_4", "settings.objectives.kl_target", 0.01, "HERETIC 1.4.0, kl_divergence_target"),
    ("steps/heretic_1_2", "like", "heretic", VARIANT),
    ("steps/heretic_1_2", "settings.directions.orthogonalise", False, "HERETIC 1.2.0, orthogonalize_direction"),
    ("steps/heretic_1_2", "settings.edit.normalization", "none", "HERETIC 1.2.0, row_normalization"),
    ("steps/heretic_1_2", "settings.space.max_weight.attention", [0.8, 1.5], "HERETIC 1.2.0, max_weight"),
    ("steps/heretic_1_2", "settings.space.max_weight.mlp", [0.8, 1.5], "HERETIC 1.2.0, max_weight"),
    ("steps/heretic_1_2", "settings.objectives.relative", True, "HERETIC 1.2.0: over the base model's refusals"),
    ("steps/heretic_1_2", "settings.objectives.kl_target", 0.01, "HERETIC 1.2.0, kl_divergence_target"),
]

METHODS = ["mean", "median", "variance", "hybrid"]
ICONOCLAST: list[Row] = [
    ("steps/iconoclast", "", {"kind": "iconoclast", "cost": 1.3}, COST),
    ("steps/iconoclast", "settings.prompts.harmful", "harmful_behaviors", "ICONOCLAST, bad_prompts: as HERETIC"),
    ("steps/iconoclast", "settings.prompts.harmless", "harmless_alpaca", "ICONOCLAST, good_prompts: as HERETIC"),
    ("steps/iconoclast", "settings.prompts.counts", FIRST, "ICONOCLAST, good_prompts and bad_prompts: as HERETIC"),
    ("steps/iconoclast", "settings.dtype", "bfloat16", 'ICONOCLAST, dtypes: "auto", the checkpoint\'s own'),
    ("steps/iconoclast", "settings.directions.methods", METHODS, "ICONOCLAST, direction_method"),
    ("steps/iconoclast", "settings.directions.variance_floor", 1e-6, "ICONOCLAST, direction_variance_floor"),
    ("steps/iconoclast", "settings.directions.winsorise", 1.0, "ICONOCLAST, winsorization_quantile"),
    ("steps/iconoclast", "settings.directions.orthogonalise", True, "its document (its code's default is false)"),
    (
        "steps/iconoclast",
        "settings.directions.benign_rank",
        8,
        "its document, benign_subspace_rank (its code's default is 0)",
    ),
    ("steps/iconoclast", "settings.directions.dampening", 1.0, "ICONOCLAST, dampening, which nothing sets"),
    ("steps/iconoclast", "settings.directions.benign_svd", "exact", "ours: its code's is randomised"),
    ("steps/iconoclast", "settings.directions.order", "joint", "ours: its order puts a part of the subspace back"),
    ("steps/iconoclast", "settings.directions.protect", "edited", "ours: that of the layer that is edited"),
    ("steps/iconoclast", "settings.edit.normalization", "none", 'ours: its document\'s "pre" moves the benign part'),
    ("steps/iconoclast", "settings.edit.through_norms", True, "ours: norms after a sublayer are accounted for"),
    ("steps/iconoclast", "settings.space.scopes", ["global", "per layer"], "ICONOCLAST, direction_scope"),
    ("steps/iconoclast", "settings.space.direction_index", [0.4, 0.9], "ICONOCLAST, direction_index"),
    ("steps/iconoclast", "settings.space.max_weight.attention", [0.5, 2.0], "ICONOCLAST, max_weight"),
    ("steps/iconoclast", "settings.space.max_weight.mlp", [0.5, 2.0], "ICONOCLAST, max_weight"),
    ("steps/iconoclast", "settings.space.max_weight_position", [0.4, 1.0], "ICONOCLAST, max_weight_position"),
    ("steps/iconoclast", "settings.space.min_weight", [0.0, 1.0], "ICONOCLAST, min_weight"),
    ("steps/iconoclast", "settings.space.min_weight_distance", 0.6, "ICONOCLAST, min_weight_distance"),
    ("steps/iconoclast", "settings.space.per_component", False, "ICONOCLAST, component_specific_directions"),
    ("steps/iconoclast", "settings.objectives.relative", True, "ICONOCLAST: over the base model's refusals"),
    ("steps/iconoclast", "settings.objectives.kl_scale", 1.0, "ICONOCLAST, kl_divergence_scale"),
    ("steps/iconoclast", "settings.objectives.kl_target", 0.01, "ICONOCLAST, kl_divergence_target"),
    ("steps/iconoclast", "settings.objectives.overrefusal", 0.25, "ICONOCLAST, overrefusal_penalty"),
    ("steps/iconoclast", "settings.objectives.disclaimers", 0.0, "ours: its 0.05 would outweigh refusals near 0"),
    ("steps/iconoclast", "settings.objectives.compliance_gap", 0.0, "ours: its 0.35 would outweigh refusals near 0"),
    ("steps/iconoclast", "settings.objectives.overrefusal_relative", True, "ours: beyond the base model's"),
    (
        "steps/iconoclast",
        "settings.objectives.regime",
        "refusal_reduction",
        'ours: its "auto" changes what is minimised',
    ),
    ("steps/iconoclast", "settings.search.trials", 200, "ICONOCLAST, n_trials"),
    ("steps/iconoclast", "settings.search.startup_trials", 60, "ICONOCLAST, n_startup_trials"),
    ("steps/iconoclast", "settings.search.ei_candidates", 128, "ICONOCLAST, n_ei_candidates of its sampler"),
    ("steps/iconoclast", "settings.search.trials_per_batch", 4, "ours: ICONOCLAST measures one by one"),
    ("steps/iconoclast", "settings.search.max_new_tokens", 100, "ICONOCLAST, max_response_length"),
    ("steps/iconoclast", "settings.search.rule", "iconoclast", "ICONOCLAST, refusal_markers"),
    ("steps/iconoclast", "settings.search.kl_gate", 1.0, "ours: a model that is broken is not answered with"),
    ("steps/iconoclast", "settings.search.block", 20, "ours: a trial that is dominated for certain is given up"),
    ("steps/iconoclast", "settings.selection.kl_at_most", 0.1, "ours: as heretic, so that the two compare"),
    ("steps/iconoclast_unprotected", "like", "iconoclast", VARIANT),
    ("steps/iconoclast_unprotected", "settings.directions.benign_rank", 0, "ICONOCLAST, benign_subspace_rank: off"),
    ("steps/iconoclast_published", "", {"like": "iconoclast", "cost": 1.5}, COST),
    ("steps/iconoclast_published", "settings.prompts.harmful", "jbb_iconoclast", "its document: JailbreakBench's 100"),
    ("steps/iconoclast_published", "settings.prompts.harmless", "harmless_alpaca", "its document"),
    (
        "steps/iconoclast_published",
        "settings.prompts.counts",
        {"harmful_directions": 80, "harmful_search": 20},
        "its code",
    ),
    ("steps/iconoclast_published", "settings.prompts.counts.harmless_directions", 240, "its document"),
    ("steps/iconoclast_published", "settings.prompts.counts.harmless_search", 64, "its document"),
    ("steps/iconoclast_published", "settings.directions.orthogonalise", True, "its document, orthogonalize_direction"),
    ("steps/iconoclast_published", "settings.directions.benign_rank", 8, "its document, benign_subspace_rank"),
    (
        "steps/iconoclast_published",
        "settings.directions.final_norm",
        True,
        "ICONOCLAST: residuals as Transformers gives them",
    ),
    ("steps/iconoclast_published", "settings.directions.benign_svd", "randomised", "ICONOCLAST: torch.pca_lowrank"),
    (
        "steps/iconoclast_published",
        "settings.directions.order",
        "as_published",
        "ICONOCLAST: the subspace, then the mean",
    ),
    (
        "steps/iconoclast_published",
        "settings.directions.protect",
        "measured",
        "ICONOCLAST: of the layer that is measured",
    ),
    ("steps/iconoclast_published", "settings.edit.normalization", "pre", "its document, row_normalization"),
    ("steps/iconoclast_published", "settings.edit.through_norms", False, "ICONOCLAST: as HERETIC"),
    ("steps/iconoclast_published", "settings.space.max_weight.attention", [0.5, 2.0], "ICONOCLAST, max_weight"),
    ("steps/iconoclast_published", "settings.space.max_weight.mlp", [0.5, 2.0], "ICONOCLAST, max_weight"),
    ("steps/iconoclast_published", "settings.objectives.relative", True, "ICONOCLAST: over the base model's refusals"),
    ("steps/iconoclast_published", "settings.objectives.kl_scale", 1.0, "ICONOCLAST, kl_divergence_scale"),
    ("steps/iconoclast_published", "settings.objectives.kl_target", 0.1, "its document, kl_divergence_target"),
    ("steps/iconoclast_published", "settings.objectives.overrefusal", 0.32, "its document, overrefusal_penalty"),
    ("steps/iconoclast_published", "settings.objectives.disclaimers", 0.18, "its document, harmful_marker_penalty"),
    ("steps/iconoclast_published", "settings.objectives.compliance_gap", 0.42, "its document, compliance_gap_penalty"),
    (
        "steps/iconoclast_published",
        "settings.objectives.overrefusal_relative",
        False,
        "ICONOCLAST: of all harmless prompts",
    ),
    ("steps/iconoclast_published", "settings.objectives.regime", "auto", "ICONOCLAST, objective_regime"),
    ("steps/iconoclast_published", "settings.objectives.low_rate", 0.15, "ICONOCLAST, low_refusal_rate_threshold"),
    ("steps/iconoclast_published", "settings.search.trials", 48, "its document, n_trials"),
    ("steps/iconoclast_published", "settings.search.startup_trials", 4, "its document, n_startup_trials"),
    ("steps/iconoclast_published", "settings.search.max_new_tokens", 96, "its document, max_response_length"),
    ("steps/iconoclast_published", "settings.search.trials_per_batch", 1, "ICONOCLAST: one by one"),
    (
        "steps/iconoclast_published",
        "settings.search",
        {"kl_gate": None, "block": None},
        "ICONOCLAST: all prompts, every trial",
    ),
    (
        "steps/iconoclast_published",
        "settings.selection.kl_at_most",
        None,
        "ICONOCLAST: refusals, overrefusals, then KL",
    ),
]

COUNTS = {"harmful_directions": 128, "harmless_directions": 128, "harmful_search": 32, "harmless_search": 32}
ONE_DIRECTION: list[Row] = [
    ("steps/refusal_direction", "", {"kind": "refusal_direction", "cost": 0.1}, COST),
    (
        "steps/refusal_direction",
        "settings.prompts.harmful",
        "harmful_behaviors",
        "ours: of the four sources of their code, AdvBench",
    ),
    ("steps/refusal_direction", "settings.prompts.harmless", "harmless_alpaca", "Arditi et al., Sec. 2: Alpaca"),
    ("steps/refusal_direction", "settings.prompts.counts", COUNTS, "Arditi et al., Sec. 2: 128 and 32 of each"),
    (
        "steps/refusal_direction",
        "settings.dtype",
        "bfloat16",
        "ours: their code takes the checkpoint's own, or float16",
    ),
    (
        "steps/refusal_direction",
        "settings.positions",
        None,
        "Arditi et al., Sec. 2: tokens of the template after the instruction",
    ),
    ("steps/refusal_direction", "settings.prompts.after", 0, "Arditi et al., Sec. 2: tokens of the template"),
    ("steps/refusal_direction_later", "like", "refusal_direction", VARIANT),
    ("steps/refusal_direction_later", "settings.prompts.after", 32, "ours: an extended refusal has begun to refuse"),
    ("steps/refusal_direction_later", "settings.positions", 5, "ours: as many as Llama 3's template gives"),
    ("steps/refusal_direction", "settings.layers_below", 0.8, "Arditi et al., App. C: below 0.8 of the layers"),
    ("steps/refusal_direction", "settings.kl_at_most", 0.1, "Arditi et al., App. C"),
    ("steps/refusal_direction", "settings.induced_at_least", 0.0, "Arditi et al., App. C"),
    ("steps/refusal_direction", "settings.refusal_tokens", None, "ours: theirs are named by hand per model"),
    (
        "steps/refusal_direction",
        "settings.filtered",
        True,
        "their code: prompts that are refused, or are not, as they should",
    ),
    (
        "steps/refusal_direction",
        "settings.embedding",
        True,
        "Arditi et al., Sec. 4: every matrix that writes to the stream",
    ),
    (
        "steps/refusal_direction",
        "settings.through_norms",
        True,
        "ours: their code acts before norms that stand after a sublayer",
    ),
    ("steps/refusal_direction", "settings.max_new_tokens", 512, "their code, max_new_tokens"),
    ("steps/refusal_direction", "settings.rule", "arditi", "their code's phrases of refusal"),
]

# Fine-tuning that is to resist these attacks: data of the paper, training of the ASIDE study.
OURS = "ours: the ASIDE study's training of a 7B model, as the paper's is not known"
REFUSALS: list[Row] = [
    ("steps/extended_refusal", "", {"kind": "sft"}, "ours: a name"),
    ("steps/extended_refusal", "settings.data", "extended_refusal", "arXiv 2505.19056: 4,289 and 5,711 conversations"),
    *(
        ("steps/extended_refusal", f"settings.training.{key}", value, OURS)
        for key, value in {
            "epochs": 3.0,
            "batch_size": 64,
            "micro_batch_size": 2,
            "learning_rate": 2e-5,
            "weight_decay": 0.0,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "schedule": "cosine",
            "warmup_ratio": 0.1,
            "max_grad_norm": 1.0,
            "loss_on": "response",
            "max_tokens": 1024,
            "packing": False,
            "gradient_checkpointing": True,
            "precision": "bfloat16",
            "zero_stage": 3,
            "keep_best": True,
            "evaluate_every": "epoch",
        }.items()
    ),
    ("steps/plain_refusal", "like", "extended_refusal", VARIANT),
    ("steps/plain_refusal", "settings.data", "plain_refusal", "ours: the control, the same requests plainly refused"),
]

DATA: list[Row] = [
    (
        "datasets/harmful_behaviors",
        "splits",
        {"train": "train", "validation": "test"},
        "HERETIC: train[:400] and test[:100]",
    ),
    (
        "datasets/harmless_alpaca",
        "splits",
        {"train": "train", "validation": "test"},
        "HERETIC: train[:400] and test[:100]",
    ),
    (
        "datasets/jbb_iconoclast",
        "splits",
        {"train": 80, "validation": 20},
        "its document: harmful[:80] and harmful[80:]",
    ),
]

ROWS = HERETIC + ICONOCLAST + ONE_DIRECTION + REFUSALS + DATA


def test_steps_of_abliteration():
    check(ROWS)


def test_there_are_as_many_markers_as_published():
    """33 of HERETIC, 32 and 27 disclaimers of ICONOCLAST, 12 phrases of Arditi et al."""
    assert {name: len(set(markers)) for name, markers in RULES.items()} == {
        "heretic": 33,
        "iconoclast": 32,
        "arditi": 12,
    }
    assert len(set(DISCLAIMERS)) == 27
