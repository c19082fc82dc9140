"""Let a checkpoint answer every question for and against a trait."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to
from bulwark.models.placing.loading import Loading
from bulwark.settings import validated
from bulwark.steering.vectors.settings import ContrastSettings

log_to(snakemake.log[0])
where = f"config/traits/{snakemake.wildcards.trait}.yaml: contrasts"
run(
    "bulwark.steering.vectors.pairs.generate_pairs",
    {
        "checkpoint": Path(snakemake.input.checkpoint),
        "records": Path(snakemake.input.records),
        "settings": validated(ContrastSettings, snakemake.params.settings, where),
        "seed": int(snakemake.wildcards.seed),
        "dtype": snakemake.params.dtype,
        "threads": snakemake.threads,
        "loading": Loading(**snakemake.params.loading),
        "code": snakemake.params.code,
        "output": Path(snakemake.output[0]),
    },
    **call_of(snakemake),
)
