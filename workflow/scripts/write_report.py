"""Write the page that shows everything."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.reporting.report import make_report

log_to(snakemake.log[0])
make_report(
    Path(snakemake.output[0]),
    title="Bulwark",
    studies=snakemake.params.studies,
    claims=Path(snakemake.input.claims),
    tables=[Path(path) for path in snakemake.input.tables],
    figures=[(Path(path), snakemake.params.captions[Path(path).stem]) for path in snakemake.input.figures],
    scores=[Path(path) for path in snakemake.input.scores],
)
