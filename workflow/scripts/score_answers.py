"""Score the answers of a checkpoint on a benchmark."""

from pathlib import Path

from bulwark.benchmarks import benchmark_of
from bulwark.config import paths
from bulwark.jobs.calls import call_of, run
from bulwark.logs import log_to

DECLARED = ("answers", "provenance", "records", "judge")

log_to(snakemake.log[0])
run(
    "bulwark.evaluation.score.score_file",
    {
        "answers": Path(snakemake.input.answers),
        "records": Path(snakemake.input.records),
        "benchmark": benchmark_of(snakemake.params.module, snakemake.params.settings),
        "identity": {
            "benchmark": snakemake.wildcards.benchmark,
            "model": snakemake.wildcards.model,
            "recipe": snakemake.wildcards.recipe,
            "seed": int(snakemake.wildcards.seed),
        },
        "provenance": Path(snakemake.input.provenance),
        "scores": Path(snakemake.output.scores),
        "inputs": {name: Path(path) for name, path in snakemake.input.items() if name not in DECLARED},
        "checkpoint": Path(paths.checkpoint(*(snakemake.wildcards[name] for name in ("model", "recipe", "seed")))),
    },
    **call_of(snakemake),
    warm="use",
)
