"""Take a checkpoint that a shared job has made, as apply_step would have; or say why that has not made it."""

from pathlib import Path

from bulwark.jobs.together import refuse_failed
from bulwark.logs import log_to

log_to(snakemake.log[0])
refuse_failed(Path(snakemake.output[0]), snakemake.params.asked, Path(snakemake.input.record))
