"""Write everything measured as one tidy table."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.reporting.tidy.write_results",
    {
        "cells": snakemake.params.cells,
        "csv": Path(snakemake.output.csv),
        "parquet": Path(snakemake.output.parquet),
    },
    **call_of(snakemake),
    warm="use",
)
