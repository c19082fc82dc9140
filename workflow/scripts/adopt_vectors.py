"""Take over a published file of trait vectors."""

from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.steering.vectors.storage import adopt

log_to(snakemake.log[0])
with sealed(sealing_of(snakemake)):
    adopt(Path(snakemake.input[0]), snakemake.wildcards.trait, snakemake.wildcards.model, Path(snakemake.output[0]))
