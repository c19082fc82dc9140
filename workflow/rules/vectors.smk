# Trait vectors of a checkpoint: results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors, extracted from contrasted
# answers (dear: generation; cheap: judging) or adopted from a published file; and which layer they steer best.

def trait_of(wildcards):
    where = f"results/vectors/{wildcards.model}/{wildcards.recipe}/seed{wildcards.seed}/{wildcards.trait}"
    recipes.check(wildcards.recipe, catalogue.steps, where)
    return catalogue.trait(wildcards.trait, where)


def contrasts_of_trait(wildcards):
    """The records that a trait is extracted from."""
    trait = trait_of(wildcards)
    if trait.dataset is None:
        raise BulwarkError(
            f'config/traits/{wildcards.trait}.yaml names neither a dataset nor a file for the model "{wildcards.model}" '
            f"(files: {', '.join(trait.files)}). Add one."
        )
    return f"results/data/{trait.dataset}/{trait.split}.jsonl"


def choice_of(wildcards):
    """How a layer is chosen, as plain data."""
    choice, blocks = trait_of(wildcards).choice, blocks_of(wildcards.model)
    for layer in choice.candidates or () if blocks else ():
        check_layer(layer, blocks, f"config/traits/{wildcards.trait}.yaml, choice.candidates")
    return choice.model_dump(mode="json")


def judge_of_trait(wildcards):
    """The settings of the judge as plain data, or None."""
    settings = catalogue.judge_of_trait(wildcards.trait)
    return None if settings is None else settings.model_dump(mode="json")


def code_of_judging(wildcards, function):
    """A digest of the code that judges: our function's, and the judge's own."""
    settings = catalogue.judge_of_trait(wildcards.trait)
    return digests.code_digest(function, *digests.judge_roots(settings and settings.kind))


def adopted(ahead):
    """A constraint of the wildcard `model`: whether (`=`) or not (`!`) a published file is named for model and trait."""
    known = [
        f"{re.escape(model)}/[^/]+/seed[0-9]+/{re.escape(name)}[.]safetensors"
        for name, trait in catalogue.traits.items()
        for model in trait.files
    ]
    return f"(?{ahead}{'|'.join(known) or '(?!)'})[^/]+"


def records_behind(model, path):
    """The records without which a file that a step or benchmark asks for (a path under results/) cannot be made."""
    stage, *_, file = path.split("/")
    name = file.split(".")[0]
    if stage == "data":
        return [path]
    if stage == "vectors":
        trait = catalogue.trait(name)
        return [] if model in trait.files else [f"data/{trait.dataset}/{trait.split}.jsonl"]
    if stage == "projections":
        projected = catalogue.projection(model, name)
        inputs = [f"data/{projected.dataset}/{projected.split}.jsonl", *projected.settings.inputs().values()]
    elif stage == "checkpoints":
        recipe = path.split("/")[2].removeprefix("{prefix}")
        steps = () if recipe == "{parent}" else recipes.steps_of(recipe)  # a parent is a checkpoint of the plan itself
        inputs = [asked for step in steps for asked in catalogue.step(model, step).settings.inputs().values()]
    else:
        inputs = []
    return [records for path in inputs for records in records_behind(model, path)]


rule generate_contrasts:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        records=explained(contrasts_of_trait),
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.contrasts.jsonl",
    log:
        "results/logs/generate_contrasts/{model}/{recipe}/seed{seed}/{trait}.log",
    benchmark:
        "results/timings/generate_contrasts/{model}/{recipe}/seed{seed}/{trait}.tsv"
    threads: lambda wildcards: catalogue.resources(wildcards.model, "generate").threads
    resources:
        **resources_of("generate", cost=lambda wildcards: trait_of(wildcards).cost),
    params:
        settings=explained(lambda wildcards: trait_of(wildcards).contrasts.model_dump(mode="json")),
        code=digests.code_digest("bulwark.steering.vectors.pairs:generate_pairs"),
        dtype=explained(lambda wildcards: catalogue.model(wildcards.model).dtype),
    script:
        "../scripts/generate_contrasts.py"


rule judge_contrasts:
    input:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.contrasts.jsonl",
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.judged.jsonl",
    log:
        "results/logs/judge_contrasts/{model}/{recipe}/seed{seed}/{trait}.log",
    localrule: True
    params:
        judge=explained(judge_of_trait),
        filter=explained(lambda wildcards: trait_of(wildcards).filter.model_dump(mode="json", exclude={"minimum"})),
        code=explained(lambda wildcards: code_of_judging(wildcards, "bulwark.steering.vectors.pairs:judge_pairs")),
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
        model=adopted("!"),
    threads: lambda wildcards: catalogue.resources(wildcards.model, "generate").threads
    resources:
        # One forward pass per answer, where answering takes one per token.
        **resources_of("generate", cost=lambda wildcards: trait_of(wildcards).cost / 10),
    params:
        minimum=explained(lambda wildcards: trait_of(wildcards).filter.minimum),
        code=digests.code_digest("bulwark.steering.vectors.extraction:extract"),
        dtype=explained(lambda wildcards: catalogue.model(wildcards.model).dtype),
    script:
        "../scripts/extract_vectors.py"


rule adopt_vectors:
    input:
        explained(lambda wildcards: trait_of(wildcards).files[wildcards.model]),
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors",
    log:
        "results/logs/adopt_vectors/{model}/{recipe}/seed{seed}/{trait}.log",
    wildcard_constraints:
        model=adopted("="),
    localrule: True
    params:
        code=digests.code_digest("bulwark.steering.vectors.storage:adopt"),
    script:
        "../scripts/adopt_vectors.py"


rule steer_layers:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        vector="results/vectors/{model}/{recipe}/seed{seed}/{trait}.safetensors",
        records=explained(contrasts_of_trait),
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.steered.jsonl",
    log:
        "results/logs/steer_layers/{model}/{recipe}/seed{seed}/{trait}.log",
    benchmark:
        "results/timings/steer_layers/{model}/{recipe}/seed{seed}/{trait}.tsv"
    threads: lambda wildcards: catalogue.resources(wildcards.model, "generate").threads
    resources:
        **resources_of("generate", cost=lambda wildcards: trait_of(wildcards).cost),
    params:
        choice=explained(choice_of),
        code=digests.code_digest("bulwark.steering.vectors.layers:steer"),
        dtype=explained(lambda wildcards: catalogue.model(wildcards.model).dtype),
    script:
        "../scripts/steer_layers.py"


rule choose_layer:
    input:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.steered.jsonl",
    output:
        "results/vectors/{model}/{recipe}/seed{seed}/{trait}.layers.json",
    log:
        "results/logs/choose_layer/{model}/{recipe}/seed{seed}/{trait}.log",
    localrule: True
    params:
        judge=explained(judge_of_trait),
        choice=explained(lambda wildcards: trait_of(wildcards).choice.model_dump(mode="json")),
        code=explained(lambda wildcards: code_of_judging(wildcards, "bulwark.steering.vectors.layers:choose")),
    script:
        "../scripts/choose_layer.py"
