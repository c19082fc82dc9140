"""Extract a trait's vectors from the pairs of answers that count."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.steering.vectors.extraction import extract

log_to(snakemake.log[0])
extract(
    Path(snakemake.input.checkpoint),
    Path(snakemake.input.judged),
    Path(snakemake.output[0]),
    trait=snakemake.wildcards.trait,
    minimum=snakemake.params.minimum,
    dtype=snakemake.params.dtype,
    threads=snakemake.threads,
)
