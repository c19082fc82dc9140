"""Make a checkpoint of the trial with the lowest validation loss."""

from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.models.folders.chosen import choose_trial

log_to(snakemake.log[0])
wildcards = snakemake.wildcards
identity = {"model": wildcards.model, "recipe": wildcards.recipe, "seed": int(wildcards.seed)}
trials = dict(zip(snakemake.params.trials, map(Path, snakemake.input), strict=True))
with sealed(sealing_of(snakemake)):
    choose_trial(trials, Path(snakemake.output[0]), identity)
