# Stage 4, evaluation: a checkpoint answers a benchmark's prompts (dear), and the answers are scored (cheap).
from bulwark import benchmarks as benchmark_modules


def benchmark_of(wildcards):
    where = f"results/scores/{wildcards.model}/{wildcards.recipe}/seed{wildcards.seed}/{wildcards.benchmark}.json"
    recipes.check(wildcards.recipe, catalogue.steps, where)
    benchmark = catalogue.benchmark(wildcards.model, wildcards.benchmark, where)
    return with_layers(benchmark, wildcards.model, f"{where}: config/benchmarks/{wildcards.benchmark}.yaml")


def records_of(wildcards):
    benchmark = benchmark_of(wildcards)
    return f"results/data/{benchmark.dataset}/{benchmark.split}.jsonl"


def inputs_of_benchmark(wildcards):
    """The checkpoint, the records, and the files under results/ that the benchmark's settings name.

    In these, `{parent}` is the recipe without its last step; the base model stands for its own parent.
    """
    recipe = wildcards.recipe
    parent = recipe if recipe == recipes.BASE else recipes.parent_of(recipe)
    place = {"model": wildcards.model, "recipe": recipe, "parent": parent, "seed": wildcards.seed}
    asked = benchmark_modules.inputs_of(benchmark_of(wildcards).settings)
    return {
        "checkpoint": checkpoint_path(wildcards.model, recipe, wildcards.seed),
        "records": records_of(wildcards),
        **{name: f"results/{path.format(**place)}" for name, path in asked.items()},
    }


def settings_of_benchmark(wildcards, **options):
    return benchmark_of(wildcards).settings.model_dump(mode="json", **options)


def code_of_scoring(wildcards):
    benchmark = benchmark_of(wildcards)
    judge = benchmark_modules.judge_of(benchmark.module, benchmark.settings)
    return digests.scores_digest(benchmark.module, judge and judge.kind)


rule generate_answers:
    input:
        unpack(explained(inputs_of_benchmark)),
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
        code=explained(lambda wildcards: digests.answers_digest(benchmark_of(wildcards).module)),
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
        code=explained(code_of_scoring),
    script:
        "../scripts/score_answers.py"
