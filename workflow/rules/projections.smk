# Stage 3, projections: a checkpoint's own answers and a data set's, on the trait vectors of that checkpoint. Steps that
# compare themselves with the untouched model ask for them, and they show what a data set would teach.


rule project_dataset:
    input:
        unpack(vectors.projection_inputs),
    output:
        projections="results/projections/{model}/{recipe}/seed{seed}/{projection}.parquet",
        screening="results/projections/{model}/{recipe}/seed{seed}/{projection}.screening.json",
    log:
        "results/logs/project_dataset/{model}/{recipe}/seed{seed}/{projection}.log",
    benchmark:
        "results/timings/project_dataset/{model}/{recipe}/seed{seed}/{projection}.tsv"
    threads: of(vectors.projection, "threads")
    resources:
        **needs(vectors.projection),
    params:
        **decided(
            "project_dataset",
            gpus=of(vectors.projection, "resources", "gpu"),
            settings=of(vectors.projection, "settings"),
            code=of(vectors.projection, "code"),
            dtype=plan.dtype,
            attention=plan.attention,
        ),
        loading=plan.loading,
    script:
        "../scripts/project_dataset.py"
