"""Let a checkpoint answer a trait's questions while it is steered, at one layer after another."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.settings import validated
from bulwark.steering.vectors.layers import steer
from bulwark.steering.vectors.settings import LayerChoice

log_to(snakemake.log[0])
steer(
    Path(snakemake.input.checkpoint),
    Path(snakemake.input.vector),
    Path(snakemake.input.records),
    validated(LayerChoice, snakemake.params.choice, f"config/traits/{snakemake.wildcards.trait}.yaml: choice"),
    seed=int(snakemake.wildcards.seed),
    dtype=snakemake.params.dtype,
    threads=snakemake.threads,
    output=Path(snakemake.output[0]),
)
