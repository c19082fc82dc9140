"""Let a checkpoint answer the prompts of a benchmark."""

from pathlib import Path

from bulwark.benchmarks import benchmark_of
from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to
from bulwark.models.placing.loading import Loading

log_to(snakemake.log[0])
run(
    "bulwark.evaluation.answer.answer",
    {
        "checkpoint": Path(snakemake.input.checkpoint),
        "records": Path(snakemake.input.records),
        "benchmark": benchmark_of(snakemake.params.module, snakemake.params.settings),
        "seed": int(snakemake.wildcards.seed),
        "dtype": snakemake.params.dtype,
        "threads": snakemake.threads,
        "loading": Loading(**snakemake.params.loading),
        "answers": Path(snakemake.output.answers),
        "provenance": Path(snakemake.output.provenance),
        "code": snakemake.params.code,
        "inputs": {name: path for name, path in snakemake.input.items() if name not in ("checkpoint", "records")},
    },
    **call_of(snakemake),
)
