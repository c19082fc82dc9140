"""Pre-train the miniature's base model on its world."""

from pathlib import Path

from bulwark.jobs.calls import leave, sealed, sealing_of
from bulwark.logs import log_to
from bulwark.miniature.model import model_config
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.tokenizer import build_tokenizer
from bulwark.settings import validated
from bulwark.training.pretraining import pretrain
from bulwark.training.settings import TrainingSettings

log_to(snakemake.log[0])
settings = validated(MiniatureSettings, snakemake.params.model["source"]["miniature"], "source.miniature")
tokenizer = build_tokenizer(settings.model.max_position_embeddings)
with sealed(sealing_of(snakemake)):
    pretrain(
        model_config(settings.model, tokenizer),
        tokenizer,
        snakemake.params.model["template"],
        {split: Path(path) for split, path in snakemake.input.items()},
        TrainingSettings(
            **settings.pretraining.model_dump(exclude={"records", "validation_records", "seed"}),
            micro_batch_size=settings.pretraining.batch_size,
        ),
        seed=settings.pretraining.seed,
        threads=snakemake.threads,
        output=Path(snakemake.output[0]),
    )
leave()
