"""Score the answers of steered layers, and name the layer at which a trait shows most."""

from pathlib import Path

from bulwark.errors import ConfigurationError
from bulwark.jobs.calls import call_of, run
from bulwark.judges import JudgeSettings
from bulwark.logs import log_to
from bulwark.settings import validated
from bulwark.steering.vectors.settings import LayerChoice

log_to(snakemake.log[0])
where = f"config/traits/{snakemake.wildcards.trait}.yaml"
if snakemake.params.judge is None:
    raise ConfigurationError(f"{where}: without a judge no layer can be chosen. Name one under judge.")
run(
    "bulwark.steering.vectors.layers.choose",
    {
        "steered": Path(snakemake.input[0]),
        "settings": validated(JudgeSettings, snakemake.params.judge, f"{where}: judge"),
        "choice": validated(LayerChoice, snakemake.params.choice, f"{where}: choice"),
        "output": Path(snakemake.output[0]),
        "cache": Path(snakemake.output[0]).with_name(f"{snakemake.wildcards.trait}.judgements.jsonl"),
    },
    **call_of(snakemake),
    warm="use",
)
