# Stage 3, steps: a recipe's checkpoint is made from its parent's by its last step. One rule does every step of
# every system; what a step reads and how it is set comes from its module and its file in config/steps/.

from bulwark.config.sharing import shares as plan_shares

decided_by_step = decided(
    "apply_step",
    gpus=of(plan.step, "resources", "gpu"),
    instead={"settings": plan.decisive_settings},
    kind=of(plan.step, "module"),
    settings=of(plan.step, "settings"),
    code=of(plan.step, "code"),
)


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
        model=f"(?!{plan_shares.shared_recipes(catalogue)})[^/]+",  # those are in shared.smk
        recipe=r"(?!base/)(?![^/]*(@[0-9]+|\.best)/)[^/]+",
    threads: of(plan.step, "threads")
    resources:
        **needs(plan.step),
    params:
        **decided_by_step,
        trial=plan.trial,  # the settings say it, too; here in short, for the manifest
        loading=plan.loading,
    script:
        "../scripts/apply_step.py"


# A snapshot, a+sft@40, lies in the folder of the training that kept it, a+sft; this rule gives it a manifest.
rule take_snapshot:
    input:
        plan.snapshot_source,
    output:
        "results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
    log:
        "results/logs/take_snapshot/{model}/{recipe}/seed{seed}.log",
    wildcard_constraints:
        recipe="[^/]*@[0-9]+",
    localrule: True
    params:
        **decided("take_snapshot", step=plan.snapshot_step, code=plan.snapshot_code),
    script:
        "../scripts/take_snapshot.py"


# The best of trials, a+aside.best: of a+aside.0, a+aside.1, … the one with the lowest validation loss, under a name of
# its own. Its weights are linked, not copied, so that they lie on the disk once.
rule choose_trial:
    input:
        plan.trial_checkpoints,
    output:
        "results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
    log:
        "results/logs/choose_trial/{model}/{recipe}/seed{seed}.log",
    wildcard_constraints:
        recipe=r"[^/]*\.best",
    localrule: True
    params:
        **decided("choose_trial", trials=plan.trials_to_choose, code=plan.choice_code),
    script:
        "../scripts/choose_trial.py"
