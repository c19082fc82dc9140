"""Write the page that shows everything."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

log_to(snakemake.log[0])
run(
    "bulwark.reporting.report.make_report",
    {
        "out": Path(snakemake.output[0]),
        "title": "Bulwark",
        "studies": snakemake.params.studies,
        "claims": Path(snakemake.input.claims),
        "tables": [Path(path) for path in snakemake.input.tables],
        "figures": [(Path(path), snakemake.params.captions[Path(path).stem]) for path in snakemake.input.figures],
        "scores": [Path(path) for path in snakemake.input.scores],
    },
    **call_of(snakemake),
    warm="use",
)
