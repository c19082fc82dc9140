"""Project a data set and a checkpoint's own answers to it on the checkpoint's trait vectors."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.steering.vectors.projections import project

log_to(snakemake.log[0])
files = {name: Path(path) for name, path in snakemake.input.items()}
project(
    files["checkpoint"],
    files["records"],
    {name.removeprefix("vector_"): path for name, path in files.items() if name.startswith("vector_")},
    snakemake.params.settings,
    seed=int(snakemake.wildcards.seed),
    dtype=snakemake.params.dtype,
    threads=snakemake.threads,
    output=Path(snakemake.output.projections),
    screening=Path(snakemake.output.screening),
)
