# Stage 4, evaluation: a checkpoint answers a benchmark's prompts (dear), and the answers are scored (cheap).


def benchmark_of(wildcards):
    where = f"results/scores/{wildcards.model}/{wildcards.recipe}/seed{wildcards.seed}/{wildcards.benchmark}.json"
    recipes.check(wildcards.recipe, catalogue.steps, where)
    return catalogue.benchmark(wildcards.model, wildcards.benchmark, where)


def records_of(wildcards):
    benchmark = benchmark_of(wildcards)
    return f"results/data/{benchmark.dataset}/{benchmark.split}.jsonl"


def settings_of_benchmark(wildcards, **options):
    return benchmark_of(wildcards).settings.model_dump(mode="json", **options)


def code_of_benchmark(wildcards, *functions):
    return catalogues.code_digest(f"bulwark.benchmarks.{benchmark_of(wildcards).module}", *functions)


rule generate_answers:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
        records=explained(records_of),
    output:
        answers="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.jsonl",
        provenance="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.provenance.json",
    log:
        "results/logs/generate_answers/{model}/{recipe}/seed{seed}/{benchmark}.log",
    benchmark:
        "results/timings/generate_answers/{model}/{recipe}/seed{seed}/{benchmark}.tsv"
    threads: lambda wildcards: catalogue.resources(wildcards.model, "generate").threads
    resources:
        **resources_of("generate", cost=lambda wildcards: benchmark_of(wildcards).cost),
    params:
        module=explained(lambda wildcards: benchmark_of(wildcards).module),
        # What only scoring reads stands under `scoring`: changing it generates nothing anew.
        settings=explained(lambda wildcards: settings_of_benchmark(wildcards, exclude={"scoring"})),
        code=explained(lambda wildcards: code_of_benchmark(wildcards, "load", "prompts")),
        dtype=explained(lambda wildcards: catalogue.model(wildcards.model).dtype),
    script:
        "../scripts/generate_answers.py"


rule score_answers:
    input:
        answers="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.jsonl",
        provenance="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.provenance.json",
        records=explained(records_of),
    output:
        scores="results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json",
        rows="results/scores/{model}/{recipe}/seed{seed}/{benchmark}.records.jsonl",
    log:
        "results/logs/score_answers/{model}/{recipe}/seed{seed}/{benchmark}.log",
    localrule: True
    params:
        module=explained(lambda wildcards: benchmark_of(wildcards).module),
        settings=explained(settings_of_benchmark),
        code=explained(code_of_benchmark),
    script:
        "../scripts/score_answers.py"
