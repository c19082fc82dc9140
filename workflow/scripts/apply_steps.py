"""Apply several steps to one parent's checkpoint, in one job."""

from pathlib import Path

from bulwark.jobs.calls import run
from bulwark.jobs.job import Job
from bulwark.jobs.sealing import Sealing
from bulwark.jobs.together import Part
from bulwark.logs import log_to

log_to(snakemake.log[0])
parts = []
for told in snakemake.params.parts:
    inputs = dict(told["inputs"])
    sealing = Sealing(tuple(dict.fromkeys(inputs.values())), (told["output"],), told["asked"], "apply_step")
    kept = {name: told[name] for name in ("kind", "settings", "output", "identity", "log", "code")}
    parts.append(Part(Job(parent=inputs.pop("parent"), inputs=inputs, **kept), sealing))
gpus, nodes = snakemake.resources.gpus_per_node, snakemake.resources.nodes
run(
    "bulwark.jobs.together.perform",
    {"parts": parts, "record": Path(snakemake.output[0]), "gpus": gpus, "nodes": nodes, "threads": snakemake.threads},
    log=snakemake.log[0],
    gpus=gpus,
    warm="never",
)
