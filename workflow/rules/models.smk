# Stage 2, models: every base model becomes a Hugging Face folder results/models/{model}/ with a manifest.


def models_from(origin):
    """A wildcard constraint: the models of one kind of source (one that matches nothing if there is none)."""
    names = [re.escape(name) for name, model in catalogue.models.items() if getattr(model.source, origin) is not None]
    return "|".join(names) or "(?!)"


def description_of_model(wildcards):
    model = catalogue.model(wildcards.model, "results/models/")
    return {"source": model.source.model_dump(mode="json"), "template": model.template}


rule download_model:
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/download_model/{model}.log",
    wildcard_constraints:
        # Also every name that nobody knows, so that `explained` can answer with the nearest one.
        model=f"(?!({models_from('path')}|{models_from('miniature')})/)[^/]+",
    localrule: True
    params:
        model=explained(description_of_model),
    script:
        "../scripts/fetch_model.py"


rule adopt_model:
    input:
        lambda wildcards: Path(catalogue.models[wildcards.model].source.path) / "config.json",
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/adopt_model/{model}.log",
    wildcard_constraints:
        model=models_from("path"),
    localrule: True
    params:
        model=explained(description_of_model),
    script:
        "../scripts/fetch_model.py"


rule pretrain_model:
    input:
        unpack(
            lambda wildcards: {
                split: f"results/data/{catalogue.models[wildcards.model].source.data}/{split}.jsonl"
                for split in ("train", "validation")
            }
        ),
    output:
        "results/models/{model}/model.json",
    log:
        "results/logs/pretrain_model/{model}.log",
    benchmark:
        "results/timings/pretrain_model/{model}.tsv"
    wildcard_constraints:
        model=models_from("miniature"),
    threads: lambda wildcards: catalogue.resources(wildcards.model, "pretrain").threads
    resources:
        **resources_of("pretrain"),
    params:
        model=explained(description_of_model),
        code=digests.pretraining_digest(),
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
    script:
        "../scripts/start_recipe.py"
