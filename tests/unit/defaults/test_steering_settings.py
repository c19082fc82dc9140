"""Steering: settings classes, traits, projections and models; test_steering.py says which paper and code these are."""

from defaults.reader import Row, check
from defaults.test_steering import GEMMA, LARGE, NOT_NAMED, OFF, SMALL, TRAITS

CLASSES: list[Row] = [
    ("settings VectorSettings", "fusion", "norm_aligned", "the paper, eq. 1; the code, --vector_fusion_mode 0"),
    ("settings VectorSettings", "weights", None, "the code: equal ones"),
    ("settings VectorSettings", "pool", "response_mean", "persona vectors' code, <trait>_response_avg_diff.pt"),
    ("settings InterventionSettings", "alpha", 1.0, "the code, --defense_alpha"),
    ("settings InterventionSettings", "adaptive", False, "the code, --defense_adaptive_alpha"),
    ("settings InterventionSettings", "tokens", "response", "the code, --injection_mode res_only"),
    ("settings InterventionSettings", "site", "block", "the code's hook on a block's output"),
    ("settings ScheduleSettings", "shape", "constant", "the code, --defense_rise_alpha and --defense_decline_alpha"),
    ("settings ScheduleSettings", "onset", None, "the code, --defense_decline_start_step 0"),
    ("settings ScheduleSettings", "horizon", None, "the code: the end of training"),
    ("settings ScheduleSettings", "multiplier", None, "the paper, eq. 4: 2 for a rise that says nothing"),
    ("settings ScheduleSettings", "withdraw_at", None, "the code, --disable_defense_step -1"),
    ("settings DetectedOnset", "share", 1.0, "the paper, App. E"),
    ("settings SteeredTraining", "", {"intervention": {}, "schedule": {}, "increments": False}, OFF),
    ("settings SteeredTraining", "embedded", False, "the code, which has no such thing; the paper, App. D"),
    ("settings steps.steer", "mean_of", None, OFF),
    ("settings AnalysedTraining", "analysis", None, "the code, --enable_gradient_analysis"),
    ("settings steps.caft", "", {"tokens": "all", "site": "block"}, 'persona vectors\' code, "ablate"'),
    ("settings steps.caft", "withdraw_at", None, OFF),
    ("settings AnalysisSettings", "every", 100, "the code, --defense_analysis_interval"),
    ("settings AnalysisSettings", "layers", None, "the code: each fifth from 10 below the vector's to 15 above it"),
    ("settings AnalysisSettings", "", {"vectors": None, "intervention": None}, "ours: the step's own"),
    ("settings AnalysisSettings", "weights", True, "the code: the analyser looks at them"),
    (
        "settings AnalysisSettings",
        "windows",
        {"early": [0.19, 0.32], "late": [0.48, 0.99]},
        "the paper, Table 8: steps 120-196 and 300-615 of about 620",
    ),
    ("settings steps.delta_loss", "mode", "mask", "the code, --defense_mode"),
    ("settings steps.delta_loss", "granularity", "sample", "the code, --defense_granularity"),
    ("settings steps.delta_loss", "strategy", "mean", "the code, --defense_sample_strategy"),
    ("settings steps.delta_loss", "threshold", 0.0, "the code, --defense_delta_threshold"),
    ("settings steps.delta_loss", "", {"intervention": {}, "schedule": {}}, "the code: --defense_alpha, no schedule"),
    ("settings steps.gradient_probe", "cos_threshold", 0.12, "the code, --gradient_probe_cos_threshold"),
    ("settings steps.gradient_probe", "proj_threshold", 1e-8, "the code, --gradient_probe_proj_threshold"),
    ("settings steps.gradient_probe", "", {"perturbation": {}, "withdraw_at": None}, OFF),
    ("settings PerturbationSettings", "derivative", "finite", "the code: a difference of two gradients"),
    ("settings PerturbationSettings", "relative", 0.05, "ours: the code's 0.01 is lost in bfloat16"),
    ("settings PerturbationSettings", "alpha", None, "the code, --gradient_probe_perturb_alpha"),
    ("settings PerturbationSettings", "diff_epsilon", None, "the code, --gradient_probe_diff_epsilon"),
    ("settings PerturbationSettings", "recompute", True, "ours: as the training does; a rank has no room otherwise"),
    ("settings steps.state_aware", "margin", 0.0, "the code: flagged is above its own answer's projection"),
    ("settings steps.state_aware", "withdraw_at", None, "the code, --disable_defense_step -1"),
    ("settings DetectorSettings", "", {"intervention": {}, "perturbation": {}}, "the code, --defense_alpha; see above"),
    ("settings DetectorSettings", "batch_size", 8, "ours: no score depends on it"),
    ("settings PreservationSettings", "scope", "target_core", "the code, --immune_param_scope"),
    ("settings PreservationSettings", "layers", "all", "the code: every layer, whatever its flags say"),
    ("settings PreservationSettings", "shape", "subspace", "the code, --immune_projection_mode svd_subspace"),
    ("settings PreservationSettings", "rank", 8, "the code, --immune_svd_rank"),
    ("settings PreservationSettings", "oversample", 4, "the code, --immune_svd_oversample"),
    ("settings PreservationSettings", "power_iterations", 2, "ours: the code has none"),
    ("settings PreservationSettings", "basis", "svd", "the paper, Sec. 4.1"),
    ("settings PreservationSettings", "delta", "masters", "ours: the code takes rounded weights"),
    ("settings PreservationSettings", "project", "update", "ours: the code projects gradients"),
    ("settings PreservationSettings", "remove", "all", "the code: both signs in the subspace mode"),
    ("settings PreservationSettings", "strength", 1.0, "the code, --immune_projection_strength"),
    ("settings PreservationSettings", "moments", "project", "ours: the code keeps them"),
    ("settings PreservationSettings", "min_delta_norm", 1e-12, "the code, --immune_min_delta_norm"),
    ("settings PreservationSettings", "allow_partial", False, "the code, --immune_allow_svd_partial"),
    ("settings ContinuationSettings", "modules", ["o_proj", "down_proj"], "the code, --immune_antibody_modules"),
    ("settings ContinuationSettings", "source", "functional_mean", "the code, --immune_antibody_source"),
    ("settings ContinuationSettings", "rank", 1, "the code, --immune_antibody_rank"),
    ("settings ContinuationSettings", "sign", "aligned", "the code"),
    ("settings ContinuationSettings", "scale", "preserve_ratio", "the code, --immune_continuation_scale_mode"),
    ("settings ContinuationSettings", "calibration_steps", 1, "the code, --immune_calibration_micro_batches 4"),
    ("settings ContinuationSettings", "calibration_tokens", 2048, "the code, --immune_calibration_min_response_tokens"),
    ("settings ContinuationSettings", "min_delta_norm", 1e-12, "the code, --immune_min_delta_norm"),
    ("settings steps.idp", "intervention", {}, "the code, --defense_alpha"),
    ("settings steps.idp_continuation", "intervention", {}, "the code, --defense_alpha"),
]

VECTORS: list[Row] = [
    *(
        (f"traits/{trait}", key, value, source)
        for trait in TRAITS
        for key, value, source in (
            ("dataset", f"contrast_{trait}", "persona vectors' code, trait_data_extract"),
            ("contrasts.names", [trait, "helpful"], 'persona vectors\' code: "You are a … assistant."'),
            ("contrasts.rollouts", 10, "persona vectors, Sec. 2"),
            ("contrasts.decoding.max_new_tokens", 1000, "persona vectors' code, --max_tokens"),
            ("contrasts.decoding.do_sample", True, "persona vectors' code: several rollouts are sampled"),
            ("contrasts.decoding.temperature", 1.0, "persona vectors' code"),
            ("judge.kind", "openai", "persona vectors' code: a model behind an interface, by its log-probabilities"),
            ("judge.scale", 100, "persona vectors, Sec. 2: 0 to 100"),
            ("judge.openai.model", "gpt-4.1-mini-2025-04-14", "persona vectors' code"),
            ("filter.threshold", 50.0, "persona vectors, Sec. 2; the code, --threshold"),
            ("filter.coherence", 50.0, "persona vectors' code"),
            ("filter.minimum", 50, "ours: fewer pairs make no vector"),
            ("cost", 0.35, "ours: 2,000 answers of some 300 tokens"),
        )
    ),
    ("settings ContrastSettings", "names", None, "ours: whoever names none has no such sentence"),
    ("settings ContrastSettings", "rollouts", 10, "persona vectors, Sec. 2"),
    ("settings ContrastSettings", "decoding", {"max_new_tokens": 1000, "do_sample": True}, "persona vectors' code"),
    ("settings PairFilter", "threshold", 50.0, "persona vectors, Sec. 2; the code, --threshold"),
    ("settings PairFilter", "coherence", 50.0, "persona vectors' code"),
    ("settings PairFilter", "minimum", 50, "ours: fewer pairs make no vector"),
    ("settings LayerChoice", "coefficient", 2.0, "ours: among persona vectors' 0.5 to 2.5"),
    ("settings LayerChoice", "positions", "response", "ours: one of the three of persona vectors' code"),
    ("settings LayerChoice", "candidates", None, "persona vectors: every layer"),
    ("settings LayerChoice", "pool", "response_mean", "persona vectors: over the response, as of VectorSettings"),
    ("settings LayerChoice", "decoding", {"max_new_tokens": 1000}, "persona vectors' code, --max_tokens"),
    ("settings Trait", "", {"contrasts": {}, "filter": {}, "choice": {}}, "persona vectors, as above"),
    ("settings Trait", "", {"dataset": None, "split": "train", "judge": None, "files": {}, "cost": 1.0}, OFF),
    ("settings Trait", "", {"description": "", "source": ""}, "ours: prose"),
]

MIXTURE = "projections/persona_mixture"
PROJECTIONS: list[Row] = [
    (MIXTURE, "", {"dataset": "persona_mixture", "cost": 4.0}, "ours: the attack's data; an expected time"),
    (MIXTURE, "settings.vectors.traits", TRAITS, "the paper, Sec. 5"),
    (MIXTURE, "settings.vectors.layers", [20], NOT_NAMED),
    (MIXTURE, "settings.vectors.fusion", "norm_aligned", "the code, --vector_fusion_mode 0"),
    (f"{MIXTURE} on {LARGE}", "settings.vectors.layers", [44], "the code, --target_layer 44"),
    (f"{MIXTURE} on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
    *(
        row
        for name, trait, layer in (
            ("evil", "evil", 20),
            ("sycophancy", "sycophantic", 20),
            ("hallucination", "hallucinating", 16),
        )
        for row in (
            (f"projections/persona_{name}", "", {"dataset": f"persona_{name}", "cost": 2.0}, "ours: an expected time"),
            (f"projections/persona_{name}", "settings.vectors.traits", [trait], "persona vectors: the data's trait"),
            (
                f"projections/persona_{name}",
                "settings.vectors.layers",
                [layer],
                "persona vectors: for Qwen2.5 7B Instruct",
            ),
            (f"projections/persona_{name} on {LARGE}", "settings.vectors.layers", [44], "the code, --target_layer 44"),
            (f"projections/persona_{name} on {GEMMA}", "settings.vectors.layers", [34], NOT_NAMED),
        )
    ),
    *(
        (f"projections/persona_{name}", key, value, source)
        for name in ("mixture", "evil", "sycophancy", "hallucination")
        for key, value, source in (
            ("settings.mode", "response_mean", "the code, --mode res_mean"),
            ("settings.max_tokens", 2048, "the code, --max_seq_len"),
            ("settings.max_new_tokens", 2048, "the code: answers as long as texts"),
        )
    ),
    ("settings ProjectionSettings", "mode", "response_mean", "the code, --mode res_mean"),
    ("settings ProjectionSettings", "names", None, "ours: the traits' names"),
    ("settings ProjectionSettings", "max_tokens", None, "ours: no limit"),
    ("settings ProjectionSettings", "max_new_tokens", 1024, "ours: the code's 2048 stands in config/projections"),
    (
        "settings ProjectionSettings",
        "subset",
        200,
        "ours: of persona vectors' cheaper estimate on a part of the prompts",
    ),
]

MODELS: list[Row] = [
    *(
        row
        for model, hub, revision, blocks in (
            (LARGE, "Qwen/Qwen2.5-32B-Instruct", "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd", 64),
            (SMALL, "Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28", 28),
            (GEMMA, "google/gemma-3-12b-it", "96b6f1eccf38110c56df3a15bffe176da04bfd80", 48),
        )
        for row in (
            (f"models/{model}", "source.hub", hub, "the paper, Table 4"),
            (f"models/{model}", "source.revision", revision, "ours: a commit that public projects pin"),
            (f"models/{model}", "template", "chat", "the code's chat template; ours: the model's own"),
            (f"models/{model}", "dtype", "bfloat16", "the code loads bfloat16"),
            (f"models/{model}", "blocks", blocks, "the model's configuration on the Hub"),
        )
    ),
    *(
        (
            f"models/{model}",
            "resources",
            {"train": train, "generate": generate},
            "ours: estimates, the paper names none",
        )
        for model, train, generate in (
            (
                LARGE,
                {"gpu": 8, "nodes": 2, "mem_gb": 768.0, "threads": 32},
                {"gpu": 1, "mem_gb": 128.0, "threads": 8},
            ),
            (
                SMALL,
                {"gpu": 8, "mem_gb": 512.0, "threads": 32},
                {"gpu": 1, "mem_gb": 96.0, "threads": 8},
            ),
            (
                GEMMA,
                {"gpu": 8, "mem_gb": 512.0, "threads": 32},
                {"gpu": 1, "mem_gb": 96.0, "threads": 8},
            ),
        )
    ),
]

ROWS = CLASSES + VECTORS + PROJECTIONS + MODELS


def test_settings_of_steering():
    check(ROWS)
