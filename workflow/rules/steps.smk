# Stage 3, steps: a recipe's checkpoint is made from its parent's by its last step. One rule does every step of
# every system; what a step reads and how it is set comes from its module and its file in config/steps/.


def step_of(wildcards):
    """The last step of the recipe in a path, resolved for the model in it."""
    where = f"results/checkpoints/{wildcards.model}/{wildcards.recipe}"
    recipes.check(wildcards.recipe, catalogue.steps, where)
    name = recipes.last_step(wildcards.recipe)
    step = catalogue.step(wildcards.model, name, where)
    return with_layers(step, wildcards.model, f"{where}: config/steps/{name}.yaml")


def inputs_of_step(wildcards):
    """The parent's checkpoint, and the files under results/ that the step's settings name."""
    parent = recipes.parent_of(wildcards.recipe)
    # What another step makes of the same parent is {prefix}<step>.
    prefix = "" if parent == recipes.BASE else f"{parent}+"
    place = {"model": wildcards.model, "parent": parent, "prefix": prefix, "seed": wildcards.seed}
    asked = {name: f"results/{path.format(**place)}" for name, path in step_of(wildcards).settings.inputs().items()}
    return {"parent": checkpoint_path(wildcards.model, parent, wildcards.seed), **asked}


rule apply_step:
    input:
        unpack(explained(inputs_of_step)),
    output:
        "results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json",
    log:
        "results/logs/apply_step/{model}/{recipe}/seed{seed}.log",
    benchmark:
        "results/timings/apply_step/{model}/{recipe}/seed{seed}.tsv"
    wildcard_constraints:
        recipe="(?!base/)[^/]+",
    threads: explained(lambda wildcards: catalogue.resources(wildcards.model, step_of(wildcards).stage).threads)
    resources:
        **resources_of(lambda wildcards: step_of(wildcards).stage, cost=lambda wildcards: step_of(wildcards).cost),
    params:
        kind=explained(lambda wildcards: step_of(wildcards).kind),
        settings=explained(lambda wildcards: step_of(wildcards).settings.model_dump(mode="json")),
        code=explained(lambda wildcards: digests.step_digest(step_of(wildcards).kind)),
    script:
        "../scripts/apply_step.py"
