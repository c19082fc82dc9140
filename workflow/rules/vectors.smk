# Trait vectors of a checkpoint: results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors, extracted from contrasted
# answers (expensive: generation; cheap: judging) or adopted from a published file; and which layer they steer best.


rule generate_contrasts:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        records=vectors.contrast_records,
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.contrasts.jsonl",
    log:
        "results/logs/generate_contrasts/{model}/{recipe}/seed{seed}/{trait}.log",
    benchmark:
        "results/timings/generate_contrasts/{model}/{recipe}/seed{seed}/{trait}.tsv"
    threads: of(vectors.contrasts, "threads")
    resources:
        **needs(vectors.contrasts),
    params:
        **decided(
            "generate_contrasts",
            gpus=of(vectors.contrasts, "resources", "gpu"),
            settings=of(vectors.contrasts, "settings"),
            code=of(vectors.contrasts, "code"),
            dtype=plan.dtype,
            attention=plan.attention,
        ),
        loading=plan.loading,
    script:
        "../scripts/generate_contrasts.py"


rule judge_contrasts:
    input:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.contrasts.jsonl",
        judge=vectors.judge_files,
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.judged.jsonl",
    log:
        "results/logs/judge_contrasts/{model}/{recipe}/seed{seed}/{trait}.log",
    localrule: True
    params:
        **decided(
            "judge_contrasts",
            judge=vectors.trait_judge,
            filter=of(vectors.pair_judging, "settings"),
            code=of(vectors.pair_judging, "code"),
        ),
    script:
        "../scripts/judge_contrasts.py"


rule extract_vectors:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        judged="results/vectors/{model}/{recipe}/seed{seed}/{trait}.judged.jsonl",
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors",
    log:
        "results/logs/extract_vectors/{model}/{recipe}/seed{seed}/{trait}.log",
    benchmark:
        "results/timings/extract_vectors/{model}/{recipe}/seed{seed}/{trait}.tsv"
    wildcard_constraints:
        model=f"(?!{plan_vectors.published_paths(catalogue)})[^/]+",
    threads: of(vectors.extraction, "threads")
    resources:
        **needs(vectors.extraction),
    params:
        **decided(
            "extract_vectors",
            gpus=of(vectors.extraction, "resources", "gpu"),
            minimum=of(vectors.extraction, "settings"),
            code=of(vectors.extraction, "code"),
            dtype=plan.dtype,
            attention=plan.attention,
        ),
        loading=plan.loading,
    script:
        "../scripts/extract_vectors.py"


rule adopt_vectors:
    input:
        vectors.published_vectors,
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors",
    log:
        "results/logs/adopt_vectors/{model}/{recipe}/seed{seed}/{trait}.log",
    wildcard_constraints:
        model=f"(?={plan_vectors.published_paths(catalogue)})[^/]+",
    localrule: True
    params:
        **decided(
            "adopt_vectors",
            code=vectors.adoption_code,
        ),
    script:
        "../scripts/adopt_vectors.py"


rule steer_layers:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        vector="results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors",
        records=vectors.contrast_records,
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.steered.jsonl",
    log:
        "results/logs/steer_layers/{model}/{recipe}/seed{seed}/{trait}.log",
    benchmark:
        "results/timings/steer_layers/{model}/{recipe}/seed{seed}/{trait}.tsv"
    threads: of(vectors.layer_steering, "threads")
    resources:
        **needs(vectors.layer_steering),
    params:
        **decided(
            "steer_layers",
            gpus=of(vectors.layer_steering, "resources", "gpu"),
            choice=of(vectors.layer_steering, "settings"),
            code=of(vectors.layer_steering, "code"),
            dtype=plan.dtype,
            attention=plan.attention,
        ),
        loading=plan.loading,
    script:
        "../scripts/steer_layers.py"


rule choose_layer:
    input:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.steered.jsonl",
        judge=vectors.judge_files,
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.layers.json",
    log:
        "results/logs/choose_layer/{model}/{recipe}/seed{seed}/{trait}.log",
    localrule: True
    params:
        **decided(
            "choose_layer",
            judge=vectors.trait_judge,
            choice=of(vectors.layer_steering, "settings"),
            code=vectors.layer_choosing_code,
        ),
    script:
        "../scripts/choose_layer.py"
