# Stage 3, steps: a recipe's checkpoint is made from its parent's by its last step. One rule does every step of
# every system; what a step reads and how it is set comes from its module and its file in config/steps/.


rule apply_step:
    input:
        unpack(plan.step_inputs),
    output:
        "results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
    log:
        "results/logs/apply_step/{model}/{recipe}/seed{seed}.log",
    benchmark:
        "results/timings/apply_step/{model}/{recipe}/seed{seed}.tsv"
    wildcard_constraints:
        recipe="(?!base/)[^/]+",
    threads: plan.step_threads
    resources:
        **needs(plan.step_resources),
    params:
        kind=plan.step_kind,
        settings=plan.step_settings,
        code=plan.step_code,
    script:
        "../scripts/apply_step.py"
