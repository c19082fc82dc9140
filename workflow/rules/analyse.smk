# Stage 4, analyses: what a step wrote down while it trained is read like a benchmark's scores.


def analysis_of(wildcards):
    where = f"results/analyses/{wildcards.model}/{wildcards.recipe}/seed{wildcards.seed}/{wildcards.analysis}.json"
    recipes.check(wildcards.recipe, catalogue.steps, where)
    return catalogue.analysis(wildcards.model, wildcards.recipe, wildcards.analysis, where)


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
        module=explained(lambda wildcards: analysis_of(wildcards).module),
        settings=explained(lambda wildcards: analysis_of(wildcards).settings),
        code=explained(lambda wildcards: digests.analysis_digest(analysis_of(wildcards).module)),
    script:
        "../scripts/analyse_checkpoint.py"
