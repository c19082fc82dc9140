"""Let a checkpoint answer every question for and against a trait."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.settings import validated
from bulwark.steering.vectors.pairs import generate_pairs
from bulwark.steering.vectors.settings import ContrastSettings

log_to(snakemake.log[0])
generate_pairs(
    Path(snakemake.input.checkpoint),
    Path(snakemake.input.records),
    validated(
        ContrastSettings, snakemake.params.settings, f"config/traits/{snakemake.wildcards.trait}.yaml: contrasts"
    ),
    seed=int(snakemake.wildcards.seed),
    dtype=snakemake.params.dtype,
    threads=snakemake.threads,
    output=Path(snakemake.output[0]),
)
