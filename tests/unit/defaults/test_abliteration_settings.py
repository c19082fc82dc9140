"""Attacks on refusals: settings classes and models; test_abliteration.py says where the sources are."""

from defaults.reader import Row, check
from defaults.test_abliteration import OFF

CLASSES: list[Row] = [
    ("settings PromptSets", "directions", "train", "HERETIC: train[:400]"),
    ("settings PromptSets", "search", "validation", "HERETIC: test[:100]"),
    ("settings PromptSets", "counts", {}, "ours: a step names them"),
    (
        "settings Asking",
        "",
        {"system_prompt": None, "response_prefix": ""},
        "ours: a model that says nothing is asked so",
    ),
    ("settings PromptSets", "after", 0, "HERETIC and Arditi et al.: residuals of the prompt"),
    ("settings DirectionSettings", "methods", ["mean"], "HERETIC: difference of means"),
    ("settings DirectionSettings", "winsorise", 1.0, "HERETIC, winsorization_quantile"),
    ("settings DirectionSettings", "final_norm", False, "ours: the residual stream before the final norm"),
    ("settings DirectionSettings", "variance_floor", 1e-6, "ICONOCLAST, direction_variance_floor"),
    ("settings DirectionSettings", "orthogonalise", False, "HERETIC 1.2.0 and ICONOCLAST, orthogonalize_direction"),
    ("settings DirectionSettings", "benign_rank", 0, "ICONOCLAST, benign_subspace_rank"),
    ("settings DirectionSettings", "benign_svd", "exact", "ours: ICONOCLAST's is randomised"),
    ("settings DirectionSettings", "dampening", 1.0, "ICONOCLAST, dampening"),
    ("settings DirectionSettings", "order", "joint", "ours: ICONOCLAST's puts a part of the subspace back"),
    ("settings DirectionSettings", "protect", "edited", "ours: of the layer that is edited"),
    ("settings EditSettings", "normalization", "none", "HERETIC 1.2.0 and ICONOCLAST, row_normalization"),
    ("settings EditSettings", "components", ["attention", "mlp"], "HERETIC: attn.o_proj and mlp.down_proj"),
    ("settings EditSettings", "through_norms", True, "ours: the authors act before norms after a sublayer"),
    ("settings EditSettings", "adapter_rank", 3, "HERETIC, full_normalization_lora_rank"),
    ("settings SpaceSettings", "scopes", ["global", "per layer"], "HERETIC, direction_scope"),
    ("settings SpaceSettings", "direction_index", [0.4, 0.9], "HERETIC, direction_index"),
    ("settings SpaceSettings", "max_weight_position", [0.6, 1.0], "HERETIC, max_weight_position"),
    ("settings SpaceSettings", "min_weight", [0.0, 1.0], "HERETIC, min_weight"),
    ("settings SpaceSettings", "min_weight_distance", 0.6, "HERETIC, min_weight_distance"),
    ("settings SpaceSettings", "shortest_distance", 1.0, "HERETIC, min_weight_distance"),
    ("settings SpaceSettings", "per_component", False, "ICONOCLAST, component_specific_directions"),
    ("settings ObjectiveSettings", "relative", False, "HERETIC 1.4, KeywordRate"),
    ("settings ObjectiveSettings", "kl_scale", 1.0, "HERETIC 1.2.0 and ICONOCLAST, kl_divergence_scale"),
    ("settings ObjectiveSettings", "kl_target", 0.0, "HERETIC 1.4, which has dropped it"),
    ("settings ObjectiveSettings", "overrefusal", 0.0, "HERETIC: no such term"),
    ("settings ObjectiveSettings", "disclaimers", 0.0, "HERETIC: no such term"),
    ("settings ObjectiveSettings", "compliance_gap", 0.0, "HERETIC: no such term"),
    ("settings ObjectiveSettings", "overrefusal_relative", True, "ours: beyond the base model's"),
    ("settings ObjectiveSettings", "regime", "refusal_reduction", "HERETIC 1.2.0, which knows no other"),
    ("settings ObjectiveSettings", "low_rate", 0.15, "ICONOCLAST, low_refusal_rate_threshold"),
    ("settings SearchSettings", "trials", 200, "HERETIC, n_trials"),
    ("settings SearchSettings", "startup_trials", 60, "HERETIC, n_startup_trials"),
    ("settings SearchSettings", "ei_candidates", 128, "HERETIC, n_ei_candidates of its sampler"),
    ("settings SearchSettings", "trials_per_batch", 1, "HERETIC: one by one"),
    ("settings SearchSettings", "max_new_tokens", 100, "HERETIC, max_response_length"),
    ("settings SearchSettings", "rule", "heretic", "HERETIC, keyword_markers"),
    ("settings SearchSettings", "first", [], "ICONOCLAST, warm_start_trials"),
    ("settings SearchSettings", "confidence", 0.95, "ours: of the intervals that are reported"),
    ("settings SearchSettings", "", {"kl_gate": None, "block": None, "seconds": None}, OFF),
    ("settings SelectionSettings", "kl_at_most", None, "ICONOCLAST: refusals, overrefusals, then KL"),
    ("settings OutcomeSettings", "completions", 5, "ICONOCLAST's export, --sample-count"),
    ("settings OutcomeSettings", "show_harmful", False, "ours: what a model without refusals writes is not kept"),
    ("settings OutcomeSettings", "geometry", True, "ours: HERETIC's --print-residual-geometry is off"),
    (
        "settings OutcomeSettings",
        "nothing_to_remove",
        "stop",
        "ours: the prompts are likely a mistake",
    ),
    ("settings AttackSettings", "dtype", "bfloat16", 'HERETIC, dtypes: "auto", the checkpoint\'s own'),
    ("settings AttackSettings", "quantised", None, "HERETIC, quantization: none"),
    (
        "settings AttackSettings",
        "",
        {"directions": {}, "edit": {}, "objectives": {}, "search": {}, "selection": {}, "outcome": {}},
        "ours: each class's own defaults, above",
    ),
    (
        "settings RefusalDirectionSettings",
        "dtype",
        "bfloat16",
        "ours: their code takes the checkpoint's own, or float16",
    ),
    ("settings RefusalDirectionSettings", "quantised", None, "ours: their code packs nothing"),
    ("settings RefusalDirectionSettings", "positions", None, "Arditi et al., Sec. 2"),
    ("settings RefusalDirectionSettings", "layers_below", 0.8, "Arditi et al., App. C"),
    ("settings RefusalDirectionSettings", "kl_at_most", 0.1, "Arditi et al., App. C"),
    ("settings RefusalDirectionSettings", "induced_at_least", 0.0, "Arditi et al., App. C"),
    ("settings RefusalDirectionSettings", "otherwise", "lowest_kl", "ours: their code stops"),
    ("settings RefusalDirectionSettings", "refusal_tokens", None, "ours: theirs are named by hand per model"),
    ("settings RefusalDirectionSettings", "filtered", True, "their code"),
    ("settings RefusalDirectionSettings", "embedding", True, "Arditi et al., Sec. 4"),
    ("settings RefusalDirectionSettings", "through_norms", True, "ours: their code acts before such norms"),
    ("settings RefusalDirectionSettings", "candidates_per_batch", 8, "ours: no result depends on it"),
    ("settings RefusalDirectionSettings", "max_new_tokens", 100, "ours: as in a search; their 512 stands in the step"),
    ("settings RefusalDirectionSettings", "rule", "arditi", "their code's phrases of refusal"),
    ("settings RefusalDirectionSettings", "outcome", {}, "ours: each class's own defaults, above"),
]

MODELS: list[Row] = [
    *(
        row
        for model, hub, revision, blocks, source in (
            (
                "llama3.1-8b-instruct",
                "meta-llama/Llama-3.1-8B-Instruct",
                "0e9e39f249a16976918f6564b8830bc894c89659",
                32,
                "its document",
            ),
            (
                "gemma-2-2b-it",
                "google/gemma-2-2b-it",
                "299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8",
                26,
                "ICONOCLAST's tables",
            ),
            (
                "phi-4-mini-instruct",
                "microsoft/Phi-4-mini-instruct",
                "cfbefacb99257ffa30c83adab238a50856ac3083",
                32,
                "ICONOCLAST's tables",
            ),
            (
                "llama2-7b-chat",
                "meta-llama/Llama-2-7b-chat-hf",
                "f5db02db724555f92da89c216ac04704f23d4590",
                32,
                "Arditi et al., Sec. 4",
            ),
            (
                "qwen2.5-0.5b-instruct",
                "Qwen/Qwen2.5-0.5B-Instruct",
                "7ae557604adf67be50417f59c2c2f167def9a775",
                24,
                "ours: below a billion parameters, ungated, refuses (docs/pocket.md)",
            ),
            (
                "smollm2-360m-instruct",
                "HuggingFaceTB/SmolLM2-360M-Instruct",
                "a10cc1512eabd3dde888204e902eca88bddb4951",
                32,
                "ours: as above, of another family (docs/pocket.md)",
            ),
        )
        for row in (
            (f"models/{model}", "source.hub", hub, source),
            (f"models/{model}", "source.revision", revision, "ours: a commit that public projects pin"),
            (f"models/{model}", "template", "chat", "the authors: the model's own template"),
            (
                f"models/{model}",
                "system_prompt",
                "You are a helpful assistant.",
                "HERETIC and ICONOCLAST, system_prompt",
            ),
            (f"models/{model}", "response_prefix", "", "HERETIC, response_prefix; ours: it is not looked for"),
            (f"models/{model}", "dtype", "bfloat16", "ours: the checkpoint's own, which HERETIC takes"),
            (f"models/{model}", "blocks", blocks, "the model's configuration on the Hub"),
        )
    ),
    *(
        (f"models/{model}", "system_prompt", "You are a helpful assistant.", "HERETIC and ICONOCLAST, system_prompt")
        for model in ("gemma-3-12b-it", "llama3-8b-instruct", "qwen2.5-32b-instruct", "qwen2.5-7b-instruct")
    ),
    ("models/llama3.1-8b-instruct", "source.pad_token", "<|finetune_right_pad_id|>", "ours: the tokenizer sets none"),
    ("models/llama2-7b-chat", "source.pad_token", "<unk>", "ours: the tokenizer has none; as for ASIDE's models"),
    *(
        (
            f"models/{model}",
            "resources",
            {"train": train, "generate": generate},
            "ours: GPUs of 80 GB that hold the model",
        )
        for model, train, generate in (
            (
                "llama3.1-8b-instruct",
                {"gpu": 8, "mem_gb": 512.0, "threads": 32},
                {"gpu": 1, "mem_gb": 96.0, "threads": 8},
            ),
            (
                "llama2-7b-chat",
                {"gpu": 8, "mem_gb": 512.0, "threads": 32},
                {"gpu": 1, "mem_gb": 96.0, "threads": 8},
            ),
            (
                "gemma-2-2b-it",
                {"gpu": 4, "mem_gb": 192.0, "threads": 16},
                {"gpu": 1, "mem_gb": 64.0, "threads": 8},
            ),
            (
                "phi-4-mini-instruct",
                {"gpu": 4, "mem_gb": 256.0, "threads": 16},
                {"gpu": 1, "mem_gb": 64.0, "threads": 8},
            ),
            *(
                (small, {"gpu": 1, "mem_gb": 24.0, "threads": 8}, {"gpu": 1, "mem_gb": 16.0, "threads": 4})
                for small in ("qwen2.5-0.5b-instruct", "smollm2-360m-instruct")
            ),
        )
    ),
]

ROWS = CLASSES + MODELS


def test_settings_of_abliteration():
    check(ROWS)
