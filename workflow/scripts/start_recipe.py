"""Start every recipe of a model: the checkpoint `base` is the base model, told by a manifest that points to it."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.models.manifests import start_recipe

log_to(snakemake.log[0])
start_recipe(
    Path(snakemake.input[0]),
    Path(snakemake.output[0]),
    {"model": snakemake.wildcards.model, "recipe": "base", "seed": int(snakemake.wildcards.seed)},
)
