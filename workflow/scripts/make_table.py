"""Make one table, in three formats, from scores."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.reporting.tables.make_table",
    {
        "spec": snakemake.params.spec,
        "cells": snakemake.params.cells,
        "published": Path(snakemake.input.published) if snakemake.input.published else None,
        "csv": Path(snakemake.output.csv),
        "markdown": Path(snakemake.output.markdown),
        "latex": Path(snakemake.output.latex),
        "missing": snakemake.params.missing,
        "command": snakemake.params.command,
    },
    **call_of(snakemake),
    warm="use",
)
