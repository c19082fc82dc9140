"""Start every recipe of a model: the checkpoint `base` is the base model, told by a manifest that points to it."""

from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.models.manifests import start_recipe

log_to(snakemake.log[0])
identity = {"model": snakemake.wildcards.model, "recipe": "base", "seed": int(snakemake.wildcards.seed)}
with sealed(sealing_of(snakemake)):
    start_recipe(Path(snakemake.input[0]), Path(snakemake.output[0]), identity)
