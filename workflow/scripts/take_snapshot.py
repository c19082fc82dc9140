"""Make a checkpoint of a snapshot that a training kept: a manifest that points to it."""

from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.training.saved.snapshots import take_snapshot

log_to(snakemake.log[0])
wildcards = snakemake.wildcards
identity = {"model": wildcards.model, "recipe": wildcards.recipe, "seed": int(wildcards.seed)}
with sealed(sealing_of(snakemake)):
    take_snapshot(Path(snakemake.input[0]), snakemake.params.step, Path(snakemake.output[0]), identity)
