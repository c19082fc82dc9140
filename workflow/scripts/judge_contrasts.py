"""Score contrasted answers, and say which pairs count."""

from pathlib import Path

from bulwark.judges import JudgeSettings
from bulwark.logs import log_to
from bulwark.settings import validated
from bulwark.steering.vectors.pairs import judge_pairs
from bulwark.steering.vectors.settings import PairFilter

log_to(snakemake.log[0])
where, given = f"config/traits/{snakemake.wildcards.trait}.yaml", snakemake.params.judge
judge_pairs(
    Path(snakemake.input[0]),
    None if given is None else validated(JudgeSettings, given, f"{where}: judge"),
    validated(PairFilter, snakemake.params.filter, f"{where}: filter"),
    Path(snakemake.output[0]),
    cache=Path(snakemake.output[0]).with_name(f"{snakemake.wildcards.trait}.judgements.jsonl"),
)
