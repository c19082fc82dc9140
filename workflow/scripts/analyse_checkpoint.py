"""Analyse what the last step of a recipe wrote down."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.analyses.analyse_file",
    {
        "checkpoint": Path(snakemake.input.checkpoint),
        "module": snakemake.params.module,
        "settings": snakemake.params.settings,
        "identity": {
            "benchmark": snakemake.wildcards.analysis,
            "model": snakemake.wildcards.model,
            "recipe": snakemake.wildcards.recipe,
            "seed": int(snakemake.wildcards.seed),
        },
        "scores": Path(snakemake.output.scores),
    },
    **call_of(snakemake),
    warm="use",
)
