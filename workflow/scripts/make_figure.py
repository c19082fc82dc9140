"""Draw one figure from scores."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.reporting.figures.make_figure",
    {
        "spec": snakemake.params.spec,
        "cells": snakemake.params.cells,
        "published": Path(snakemake.input.published) if snakemake.input.published else None,
        "pdf": Path(snakemake.output.pdf),
        "png": Path(snakemake.output.png),
        "csv": Path(snakemake.output.csv),
        "missing": snakemake.params.missing,
        "command": snakemake.params.command,
    },
    **call_of(snakemake),
    warm="use",
)
