# Stage 3, projections: a checkpoint's own answers and a data set's, on the trait vectors of that checkpoint. Steps that
# compare themselves with the untouched model ask for them, and one reads in them what a data set would teach.


def projection_of(wildcards):
    where = (
        f"results/projections/{wildcards.model}/{wildcards.recipe}/seed{wildcards.seed}/{wildcards.projection}.parquet"
    )
    recipes.check(wildcards.recipe, catalogue.steps, where)
    projected = catalogue.projection(wildcards.model, wildcards.projection, where)
    return with_layers(projected, wildcards.model, f"{where}: config/projections/{wildcards.projection}.yaml")


def inputs_of_projection(wildcards):
    """The checkpoint, the data set, and the trait vectors of the checkpoint."""
    projected = projection_of(wildcards)
    place = {"model": wildcards.model, "parent": wildcards.recipe, "seed": wildcards.seed}
    return {
        "checkpoint": checkpoint_path(wildcards.model, wildcards.recipe, wildcards.seed),
        "records": f"results/data/{projected.dataset}/{projected.split}.jsonl",
        **{name: f"results/{path.format(**place)}" for name, path in projected.settings.inputs().items()},
    }


rule project_dataset:
    input:
        unpack(explained(inputs_of_projection)),
    output:
        projections="results/projections/{model}/{recipe}/seed{seed}/{projection}.parquet",
        screening="results/projections/{model}/{recipe}/seed{seed}/{projection}.screening.json",
    log:
        "results/logs/project_dataset/{model}/{recipe}/seed{seed}/{projection}.log",
    benchmark:
        "results/timings/project_dataset/{model}/{recipe}/seed{seed}/{projection}.tsv"
    threads: lambda wildcards: catalogue.resources(wildcards.model, "generate").threads
    resources:
        **resources_of("generate", cost=lambda wildcards: projection_of(wildcards).cost),
    params:
        settings=explained(lambda wildcards: projection_of(wildcards).settings.model_dump(mode="json")),
        code=digests.code_digest("bulwark.steering.vectors.projections:project"),
        dtype=explained(lambda wildcards: catalogue.model(wildcards.model).dtype),
    script:
        "../scripts/project_dataset.py"
