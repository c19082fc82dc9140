"""Make one table, in three formats, from scores."""

from pathlib import Path

from bulwark.logs import log_to
from bulwark.reporting.tables import make_table

log_to(snakemake.log[0])
make_table(
    snakemake.params.spec,
    snakemake.params.cells,
    Path(snakemake.input.published) if snakemake.input.published else None,
    csv=Path(snakemake.output.csv),
    markdown=Path(snakemake.output.markdown),
    latex=Path(snakemake.output.latex),
)
