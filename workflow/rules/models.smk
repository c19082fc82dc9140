# Stage 2, models: every base model becomes a Hugging Face folder results/models/{model}/ with a manifest.


rule download_model:
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/download_model/{model}.log",
    wildcard_constraints:
        # Also every unknown name, so that the plan can answer with the nearest one.
        model=f"(?!({plan_jobs.models_from(catalogue, 'path')}|{plan_jobs.models_from(catalogue, 'miniature')})/)[^/]+",
    localrule: True
    params:
        **decided(
            "download_model",
            model=plan.model_description,
        ),
    script:
        "../scripts/fetch_model.py"


rule adopt_model:
    input:
        plan.model_files,
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/adopt_model/{model}.log",
    wildcard_constraints:
        model=plan_jobs.models_from(catalogue, "path"),
    localrule: True
    params:
        **decided(
            "adopt_model",
            model=plan.model_description,
        ),
    script:
        "../scripts/fetch_model.py"


rule pretrain_model:
    input:
        unpack(plan.pretraining_records),
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/pretrain_model/{model}.log",
    benchmark:
        "results/timings/pretrain_model/{model}.tsv"
    wildcard_constraints:
        model=plan_jobs.models_from(catalogue, "miniature"),
    threads: of(plan.pretraining, "threads")
    resources:
        **needs(plan.pretraining),
    params:
        **decided(
            "pretrain_model",
            gpus=of(plan.pretraining, "resources", "gpu"),
            model=plan.model_description,
            code=of(plan.pretraining, "code"),
        ),
    script:
        "../scripts/pretrain_model.py"


rule start_recipe:
    input:
        "results/models/{model}/model.json",
    output:
        "results/checkpoints/{model}/base/seed{seed}/checkpoint.json",
    log:
        "results/logs/start_recipe/{model}/base/seed{seed}.log",
    localrule: True
    params:
        **decided("start_recipe"),
    script:
        "../scripts/start_recipe.py"
