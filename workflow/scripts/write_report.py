"""Write the page that shows everything."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.reporting.report.make_report",
    {
        "out": Path(snakemake.output[0]),
        "name": Path(snakemake.output[0]).parent.name,
        "studies": snakemake.params.studies,
        "toys": snakemake.params.toys,
        "claims": Path(snakemake.input.claims),
        "columns": snakemake.params.columns,
        "tables": snakemake.params.tables,
        "published": {Path(path).stem: Path(path) for path in snakemake.input.published},
        "figures": snakemake.params.figures,
        "cells": snakemake.params.cells,
    },
    **call_of(snakemake),
    warm="use",
)
