# Stage 3, steps that share a job: where a model has resources.shared_hours, trainings of one checkpoint are done by one
# job, apply_steps. Its results are checkpoints like any other, asked for and sealed as apply_step's; take_shared stands
# for each of them in the plan, so that each is done, stale or missing by itself. A shared job makes what is wanted of
# its members and nothing else: what that is, the run's main process finds out and writes down for the job.
import json

from bulwark.config.sharing import shares as plan_shares

WANTED = ".snakemake/wanted"
shared = planned(plan_shares)
made_by_shared = {}  # {job of take_shared: (its shared job, the file between them)}
wanted_of = {}  # {record_of a shared job: the recipes that this run wants of it}


def is_shared(job):
    return job.rule.name == "apply_steps"


def record_of(model, parent, seed, share):
    return f"{model}/{parent}/seed{seed}/{share}.json"


def wanted_in(wildcards):
    """The recipes that a shared job is to make; all its members where nobody has said."""
    record, told = record_of(*wildcards), Path(WANTED, record_of(*wildcards))
    members = explained(plan_shares.members, catalogue, wildcards.model, wildcards.parent, wildcards.share)
    if not workflow.is_main_process and told.exists():
        return json.loads(told.read_text(encoding="utf-8"))
    return [recipe for recipe in members if recipe in wanted_of.get(record, members)]


def without_shared_jobs(dag):
    """Take out of the plan what joins shared jobs with their results, for what is needed does not depend on them."""
    for job in dag.jobs:
        for needed in [one for one in dag.dependencies[job] if is_shared(one)]:
            made_by_shared[job] = needed, dag.dependencies[job].pop(needed)
            dag.depending[needed].pop(job)


def with_shared_jobs(dag):
    """Put it in again for the results that are needed, and leave out the jobs that nobody needs then."""
    wanted_of.clear()
    for job, (needed, files) in made_by_shared.items():
        if dag.needrun(job):
            dag.dependencies[job][needed] = dag.depending[needed][job] = files
            wanted_of.setdefault(record_of(*needed.wildcards), set()).add(job.wildcards.recipe)
    dag.cleanup()


def shared_jobs(dag):
    """{(model, parent, seed, share): the recipes that it is to make} of each shared job that is to run."""
    return {tuple(job.wildcards): wanted_in(job.wildcards) for job in dag.needrun_jobs() if is_shared(job)}


def tell_shared_jobs(dag):
    """Before the first job of a run: write down what is wanted of each shared job, wherever that will run."""
    for wildcards, wanted in shared_jobs(dag).items():
        told = Path(WANTED, record_of(*wildcards))
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(wanted), encoding="utf-8")
    for job in made_by_shared:
        if dag.needrun(job):
            if dag.reason(job).forced:
                Path(job.output[0]).unlink(missing_ok=True)  # what is done would be left as it is
            dag.reason(job).missing_output.clear()  # Snakemake would warn of what the shared job has made


def shared_work(wildcards):
    """What a shared job needs: what one training of its model needs, for as long as all of its trainings take."""
    return SimpleNamespace(resources=explained(plan_shares.resources, catalogue, wildcards.model, wanted_in(wildcards)))


rule apply_steps:
    input:
        unpack(shared.inputs),
    output:
        "results/logs/apply_steps/{model}/{parent}/seed{seed}/{share}.json",
    log:
        "results/logs/apply_steps/{model}/{parent}/seed{seed}/{share}.log",
    benchmark:
        "results/timings/apply_steps/{model}/{parent}/seed{seed}/{share}.tsv"
    wildcard_constraints:
        parent="[^/]+",
        share=r"0|[1-9]\d*",
    threads: lambda wildcards: catalogue.resources(wildcards.model, "train").threads
    resources:
        **needs(shared_work),
    params:
        parts=lambda wildcards: plan_shares.parts(catalogue, wildcards.model, wildcards.seed, wanted_in(wildcards)),
    script:
        "../scripts/apply_steps.py"


rule take_shared:
    input:
        unpack(plan.step_inputs),
        record=shared.record,
    output:
        update("results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json"),
    log:
        "results/logs/take_shared/{model}/{recipe}/seed{seed}.log",
    wildcard_constraints:
        model=f"(?={plan_shares.shared_recipes(catalogue)})[^/]+",
        recipe="[^/@]+",
    localrule: True
    params:
        **decided_by_step,
    script:
        "../scripts/take_shared.py"
