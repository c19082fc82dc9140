"""Project a data set and a checkpoint's own answers to it on the checkpoint's trait vectors."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to
from bulwark.models.placing.loading import Loading

log_to(snakemake.log[0])
files = {name: Path(path) for name, path in snakemake.input.items()}
run(
    "bulwark.steering.vectors.projections.project",
    {
        "checkpoint": files["checkpoint"],
        "records": files["records"],
        "vectors": {name.removeprefix("vector_"): path for name, path in files.items() if name.startswith("vector_")},
        "settings": snakemake.params.settings,
        "seed": int(snakemake.wildcards.seed),
        "dtype": snakemake.params.dtype,
        "threads": snakemake.threads,
        "loading": Loading(**snakemake.params.loading),
        "code": snakemake.params.code,
        "output": Path(snakemake.output.projections),
        "screening": Path(snakemake.output.screening),
    },
    **call_of(snakemake),
)
