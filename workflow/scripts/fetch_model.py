"""Make a base model available: download it and its tokenizer at pinned revisions, or adopt the user's folder."""

import os
from pathlib import Path

from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.models.origin import adopt_model, fetch_model

os.environ["HF_HUB_OFFLINE"] = "0"  # read when the Hub's client is imported, which the functions below do
log_to(snakemake.log[0])
source, template = snakemake.params.model["source"], snakemake.params.model["template"]
with sealed(sealing_of(snakemake)):
    if source["path"]:
        adopt_model(Path(source["path"]), template, Path(snakemake.output[0]))
    else:
        fetch_model(source, template, Path(snakemake.output[0]))
