"""Apply the last step of a recipe to its parent's checkpoint."""

from bulwark.jobs.calls import call_of, run
from bulwark.jobs.job import Job
from bulwark.logs import log_to

log_to(snakemake.log[0])
job = Job(
    kind=snakemake.params.kind,
    settings=snakemake.params.settings,
    parent=snakemake.input.parent,
    output=snakemake.output[0],
    inputs={name: path for name, path in snakemake.input.items() if name != "parent"},
    identity={
        "model": snakemake.wildcards.model,
        "recipe": snakemake.wildcards.recipe,
        "seed": int(snakemake.wildcards.seed),
        **({"trial": dict(snakemake.params.trial)} if snakemake.params.trial else {}),
    },
    log=snakemake.log[0],
    code=snakemake.params.code,
    loading=dict(snakemake.params.loading),
)
gpus, nodes = snakemake.resources.gpus_per_node, snakemake.resources.nodes
run(
    "bulwark.steps.perform",
    {"job": job, "gpus": gpus, "nodes": nodes, "threads": snakemake.threads},
    **call_of(snakemake),
)
