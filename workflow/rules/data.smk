# Stage 1, data: every data set becomes results/data/{dataset}/{split}.jsonl in the schema of its kind.


def origin_of_records(wildcards):
    """What a data set is prepared from: a download, the user's files, or nothing (the miniature makes its own)."""
    dataset = catalogue.dataset(wildcards.dataset, "results/data/")
    source = dataset.source
    if source.hub or source.url:
        return [f"results/downloads/{wildcards.dataset}/download.json"]
    if source.path and dataset.parts:
        return [f"{source.path}/{part}" for part in dataset.parts]
    if source.path:
        return [source.path] if isinstance(source.path, str) else list(source.path.values())
    return []


def recipe_of_records(wildcards):
    """Everything that decides the content of a split, as plain data."""
    dataset = catalogue.dataset(wildcards.dataset)
    if wildcards.split not in dataset.splits:
        raise BulwarkError(
            f'The data set "{wildcards.dataset}" has no split "{wildcards.split}".{nearest(wildcards.split, dataset.splits)}'
        )
    world = catalogue.model(dataset.source.world).source.miniature if dataset.source.miniature else None
    return {
        "dataset": dataset.model_dump(mode="json", exclude={"description", "licence"}),
        "world": world,
        "code": digests.records_digest(dataset.kind, made=world is not None),
    }


rule download_dataset:
    output:
        "results/downloads/{dataset}/download.json",
    log:
        "results/logs/download_dataset/{dataset}.log",
    localrule: True
    params:
        source=explained(
            lambda wildcards: catalogue.dataset(wildcards.dataset, "results/downloads/").source.model_dump(mode="json")
        ),
    script:
        "../scripts/download_dataset.py"


rule prepare_dataset:
    input:
        explained(origin_of_records),
    output:
        "results/data/{dataset}/{split}.jsonl",
    log:
        "results/logs/prepare_dataset/{dataset}/{split}.log",
    localrule: True
    params:
        recipe=explained(recipe_of_records),
    script:
        "../scripts/prepare_dataset.py"
