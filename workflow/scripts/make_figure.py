"""Draw one figure from scores."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.reporting.figures import make_figure

log_to(snakemake.log[0])
make_figure(
    snakemake.params.spec,
    snakemake.params.cells,
    Path(snakemake.input.published) if snakemake.input.published else None,
    pdf=Path(snakemake.output.pdf),
    png=Path(snakemake.output.png),
)
