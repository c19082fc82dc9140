"""Turn a data set's source into the records of one split, in the schema of its kind."""

import tempfile
from pathlib import Path

from bulwark.config.entities import Dataset
from bulwark.config.sources import schema_of, told_of_other_kinds
from bulwark.data import contrasts, foreign, mixtures, packages, readers
from bulwark.data.records import write_records
from bulwark.jobs.calls import sealed, sealing_of
from bulwark.logs import log_to
from bulwark.miniature.records import write as write_miniature
from bulwark.miniature.settings import MiniatureSettings
from bulwark.settings import validated

log_to(snakemake.log[0])
split, recipe = snakemake.wildcards.split, snakemake.params.recipe
dataset = validated(Dataset, recipe["dataset"], f"config/datasets/{snakemake.wildcards.dataset}.yaml")
source = dataset.source
with sealed(sealing_of(snakemake)), tempfile.TemporaryDirectory() as scratch:
    path = packages.installed(source.package) if source.package else source.path
    if source.miniature:
        wanted = dataset.splits[split]
        name, count = (wanted, None) if isinstance(wanted, str) else (split, int(wanted))
        path = {name: f"{scratch}/{name}.jsonl"}
        world = validated(MiniatureSettings, recipe["world"], f"models.{source.world}: source.miniature")
        write_miniature(source.miniature, world, name, Path(path[name]), count)
    elif not path:
        folder = Path(snakemake.input[0]).parent
        path = folder / source.files[0] if len(source.files) == 1 and not dataset.parts else folder
    if source.mixture:
        files = dict(zip(source.mixture, snakemake.input, strict=True))
        records = mixtures.mixed(files, source.mixture, **dataset.model_dump(include={"shuffle_seed", "limit"}))
    else:
        options = set(readers.SPLIT_OPTIONS)
        if dataset.format == "artefact":
            path, options = contrasts.unpacked(path, dataset.kind, Path(scratch)), options - {"format"}
        if dataset.format in foreign.FOREIGN and not source.miniature:
            path = foreign.unpacked(dataset.format, path, dataset.parts, Path(scratch))
            options -= {"format", "parts"}
        options = dataset.model_dump(include=options)
        with told_of_other_kinds(dataset, path, split):
            records = readers.read_split(path, split, dataset.splits, schema_of(dataset.kind), **options)
    write_records(Path(snakemake.output[0]), records)
