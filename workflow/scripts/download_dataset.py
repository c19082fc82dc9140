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
    files = source.get("urls") or ({name_of(source["url"]): source} if source["url"] else {})
    for name, file in files.items():
        download(file["url"], file["sha256"], told.parent / name, file["git_blob"])
    shown = source | {"url": source["url"] and without_credentials(source["url"])}
    if source.get("urls"):
        shown |= {"urls": {name: file | {"url": without_credentials(file["url"])} for name, file in files.items()}}
    manifests.write_manifest(told, {"source": shown, "provenance": manifests.provenance()})
