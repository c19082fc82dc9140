# Stage 1, data: every data set becomes results/data/{dataset}/{split}.jsonl in the schema of its kind.


rule download_dataset:
    output:
        "results/downloads/{dataset}/download.json",
    log:
        "results/logs/download_dataset/{dataset}.log",
    localrule: True
    params:
        **decided(
            "download_dataset",
            source=plan.download_source,
        ),
    script:
        "../scripts/download_dataset.py"


rule prepare_dataset:
    input:
        plan.records_files,
    output:
        "results/data/{dataset}/{split}.jsonl",
    log:
        "results/logs/prepare_dataset/{dataset}/{split}.log",
    localrule: True
    params:
        **decided(
            "prepare_dataset",
            recipe=plan.records_recipe,
        ),
    script:
        "../scripts/prepare_dataset.py"
