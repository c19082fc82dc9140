# Stage 4, analyses: what a step wrote down while it trained becomes a file like a benchmark's scores.


rule analyse_checkpoint:
    input:
        checkpoint="results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
    output:
        scores="results/analyses/{model}/{recipe}/seed{seed}/{analysis}.json",
        rows="results/analyses/{model}/{recipe}/seed{seed}/{analysis}.records.jsonl",
    log:
        "results/logs/analyse_checkpoint/{model}/{recipe}/seed{seed}/{analysis}.log",
    localrule: True
    params:
        **decided(
            "analyse_checkpoint",
            module=of(plan.analysis, "module"),
            settings=of(plan.analysis, "settings"),
            code=of(plan.analysis, "code"),
        ),
    script:
        "../scripts/analyse_checkpoint.py"
