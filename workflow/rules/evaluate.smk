# Stage 4, evaluation: a checkpoint answers a benchmark's prompts (expensive), and the answers are scored (cheap).


rule generate_answers:
    input:
        unpack(plan.answer_inputs),
    output:
        answers="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.jsonl",
        provenance="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.provenance.json",
    log:
        "results/logs/generate_answers/{model}/{recipe}/seed{seed}/{benchmark}.log",
    benchmark:
        "results/timings/generate_answers/{model}/{recipe}/seed{seed}/{benchmark}.tsv"
    threads: of(plan.answers, "threads")
    resources:
        **needs(plan.answers),
    params:
        **decided(
            "generate_answers",
            gpus=of(plan.answers, "resources", "gpu"),
            module=of(plan.answers, "module"),
            settings=of(plan.answers, "settings"),
            code=of(plan.answers, "code"),
            dtype=plan.dtype,
            attention=plan.attention,
        ),
        loading=plan.loading,
    script:
        "../scripts/generate_answers.py"


rule score_answers:
    input:
        unpack(plan.scoring_inputs),
        answers="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.jsonl",
        provenance="results/answers/{model}/{recipe}/seed{seed}/{benchmark}.provenance.json",
        records=plan.benchmark_records,
        judge=plan.benchmark_judge,
    output:
        scores="results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json",
        rows="results/scores/{model}/{recipe}/seed{seed}/{benchmark}.records.jsonl",
    log:
        "results/logs/score_answers/{model}/{recipe}/seed{seed}/{benchmark}.log",
    localrule: True
    params:
        **decided(
            "score_answers",
            module=of(plan.scores, "module"),
            settings=of(plan.scores, "settings"),
            code=of(plan.scores, "code"),
        ),
    script:
        "../scripts/score_answers.py"
