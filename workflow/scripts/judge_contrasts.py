"""Score contrasted answers, and say which pairs count."""

from pathlib import Path

from bulwark.jobs.calls import call_of, run
from bulwark.judges import JudgeSettings
from bulwark.logs import log_to
from bulwark.settings import validated
from bulwark.steering.vectors.settings import PairFilter

log_to(snakemake.log[0])
where, given = f"config/traits/{snakemake.wildcards.trait}.yaml", snakemake.params.judge
run(
    "bulwark.steering.vectors.pairs.judge_pairs",
    {
        "contrasts": Path(snakemake.input[0]),
        "settings": None if given is None else validated(JudgeSettings, given, f"{where}: judge"),
        "which": validated(PairFilter, snakemake.params.filter, f"{where}: filter"),
        "output": Path(snakemake.output[0]),
        "cache": Path(snakemake.output[0]).with_name(f"{snakemake.wildcards.trait}.judgements.jsonl"),
    },
    **call_of(snakemake),
    warm="use",
)
