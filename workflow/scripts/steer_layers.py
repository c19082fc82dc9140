"""Let a checkpoint answer a trait's questions while it is steered, at one layer after another."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to
from bulwark.models.placing.loading import Loading
from bulwark.settings import validated
from bulwark.steering.vectors.settings import LayerChoice

log_to(snakemake.log[0])
where = f"config/traits/{snakemake.wildcards.trait}.yaml: choice"
run(
    "bulwark.steering.vectors.layers.steer",
    {
        "checkpoint": Path(snakemake.input.checkpoint),
        "vector": Path(snakemake.input.vector),
        "records": Path(snakemake.input.records),
        "choice": validated(LayerChoice, snakemake.params.choice, where),
        "seed": int(snakemake.wildcards.seed),
        "dtype": snakemake.params.dtype,
        "threads": snakemake.threads,
        "loading": Loading(**snakemake.params.loading),
        "code": snakemake.params.code,
        "output": Path(snakemake.output[0]),
    },
    **call_of(snakemake),
)
