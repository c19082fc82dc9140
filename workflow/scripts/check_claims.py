"""Check every claim of the configured studies."""

from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.reporting.claims import check_claim, corrected
from bulwark.reporting.verdicts import write_claims

log_to(snakemake.log[0])
with sealed(sealing_of(snakemake)):
    checked = [check_claim(name, spec, snakemake.params.cells[name]) for name, spec in snakemake.params.specs.items()]
    page = corrected(checked)
    write_claims(page, snakemake.params.columns, Path(snakemake.output.json), Path(snakemake.output.markdown))
