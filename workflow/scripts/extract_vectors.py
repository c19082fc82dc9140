"""Extract a trait's vectors from the pairs of answers that count."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to
from bulwark.models.placing.loading import Loading

log_to(snakemake.log[0])
run(
    "bulwark.steering.vectors.extraction.extract",
    {
        "checkpoint": Path(snakemake.input.checkpoint),
        "judged": Path(snakemake.input.judged),
        "output": Path(snakemake.output[0]),
        "trait": snakemake.wildcards.trait,
        "minimum": snakemake.params.minimum,
        "dtype": snakemake.params.dtype,
        "threads": snakemake.threads,
        "loading": Loading(**snakemake.params.loading),
    },
    **call_of(snakemake),
)
