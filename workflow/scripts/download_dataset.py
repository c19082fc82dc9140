"""Download a data set at its pinned revision."""

import os
from pathlib import Path

from bulwark.data.downloads import download, fetch, name_of
from bulwark.errors import without_credentials
from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.models import manifests

os.environ["HF_HUB_OFFLINE"] = "0"  # read when the Hub's client is imported, which the functions below do
log_to(snakemake.log[0])
source, told = snakemake.params.source, Path(snakemake.output[0])
with sealed(sealing_of(snakemake)):
    if source["hub"]:
        fetch(source["hub"], source["revision"], told.parent, "dataset", source["files"])
    else:
        download(source["url"], source["sha256"], told.parent / name_of(source["url"]), source["git_blob"])
    shown = source | {"url": source["url"] and without_credentials(source["url"])}
    manifests.write_manifest(told, {"source": shown, "provenance": manifests.provenance()})
