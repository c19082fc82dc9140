"""How long a job is expected to take: measured if the same was done here before, else published, else guessed.

A guess is work / (what the GPUs can do × the share that is reached) beside the start: a training computes, an answer
reads all weights once per token. So of two models the one with more parameters never takes less. A model whose
`resources` say `hours` is believed: these are what a job of cost 1 takes.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bulwark.config import recipes
from bulwark.config.catalogue import Catalogue, Resolved
from bulwark.config.costs import published
from bulwark.config.costs.accelerators import (
    ACCELERATORS,
    CPU_THREAD,
    DECODING_SHARE,
    LOADING,
    START_SECONDS,
    TRAINING_SHARE,
    Accelerator,
)
from bulwark.config.costs.amounts import ANSWERS, NEW_TOKENS, TOGETHER, answering_work, training_work
from bulwark.config.entities import Resources
from bulwark.errors import ConfigurationError

Origin = Literal["measured", "published", "guessed"]
TIMINGS = "results/timings"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LIMIT_OVER_EXPECTED = 1.5
LEAST_MINUTES = {True: 30, False: 5}  # of a job with GPUs, whose start and load are the least certain; without


@dataclass(frozen=True)
class Estimate:
    """How long a job is expected to take, in hours, and how that is known. longest: that it took here, where known."""

    hours: float
    origin: Origin
    longest: float = 0.0

    def minutes(self, gpus: int) -> int:
        """After which SLURM ends the job: half as much again as expected or as it ever took, LEAST_MINUTES at least."""
        return max(LEAST_MINUTES[gpus > 0], round(60 * LIMIT_OVER_EXPECTED * max(self.hours, self.longest)))


NOTHING = Estimate(0.0, "guessed")


def step(catalogue: Catalogue, model: str, name: str) -> Estimate:
    """Of a step, as it stands in a recipe ("sft", "relearn.3"), on a model."""
    found = _measured("apply_step", model, recipes.snapshot_of(name)[0], of_step=True)
    return found or planned(catalogue, model, name)


def planned(catalogue: Catalogue, model: str, name: str) -> Estimate:
    """The same, whatever was measured: it stays while a run goes on."""
    resolved = catalogue.step(model, name)
    needed = catalogue.resources(model, resolved.stage)
    if needed.hours is not None:
        return Estimate(needed.hours * resolved.cost, "guessed")
    hours = _step_hours(catalogue, model, resolved, needed, _accelerator(catalogue, needed))
    known = published.OF_KIND.get(resolved.module)
    if known is None or known.model not in catalogue.models:
        return Estimate(hours, "guessed")
    theirs = _training_hours(catalogue, known.model, known.work, known.gpus, ACCELERATORS[known.accelerator])
    same = model == known.model and math.isclose(hours, theirs)  # the same work on the same GPUs
    return Estimate(hours * known.hours / theirs, "published" if same else "guessed")


def answers(catalogue: Catalogue, model: str, benchmark: str) -> Estimate:
    """Of answering a benchmark."""
    resolved = catalogue.benchmark(model, benchmark)
    found = _measured("generate_answers", model, benchmark)
    return found or _answering(catalogue, model, answering_work(resolved))


def traits(catalogue: Catalogue, model: str, trait: str, rule: str) -> Estimate:
    """Of one of the rules that make a trait's vectors: answering, steering at layers, or extracting.

    Extracting takes a tenth of the time of answering: one forward pass per answer, where answering takes one per token.
    """
    share = 10 if rule == "extract_vectors" else 1
    return _measured(rule, model, trait) or _answering(catalogue, model, catalogue.trait(trait).cost / share)


def projection(catalogue: Catalogue, model: str, name: str) -> Estimate:
    """Of projecting a data set on trait vectors."""
    found = _measured("project_dataset", model, name)
    return found or _answering(catalogue, model, answering_work(catalogue.projection(model, name)))


def pretraining(catalogue: Catalogue, model: str) -> Estimate:
    """Of pre-training a miniature, which says its time."""
    if (seconds := _seconds(Path(TIMINGS, "pretrain_model", f"{model}.tsv"))) is not None:
        return Estimate(seconds / 3600, "measured", seconds / 3600)
    return Estimate(catalogue.resources(model, "pretrain").hours or 0.1, "guessed")


def together(parts: Iterable[Estimate]) -> Estimate:
    """One after the other; known as surely as the least certain of them."""
    parts = list(parts)
    order = ("measured", "published", "guessed")
    origin = max((part.origin for part in parts), key=order.index, default="guessed")
    return Estimate(sum(part.hours for part in parts), origin, sum(max(part.hours, part.longest) for part in parts))


def parameters(catalogue: Catalogue, model: str) -> float:
    """How many parameters a model has: as its file says, or else by the size of the user's folder.

    Raises ConfigurationError where neither says so.
    """
    entity = catalogue.model(model)
    if entity.parameters is not None:
        return entity.parameters
    if entity.source.path and (size := _weights(Path(entity.source.path))):
        return size / BYTES[entity.dtype]
    place = catalogue.where("models", model)
    raise ConfigurationError(
        f"{place}: it says neither how many parameters the model has nor how long its jobs take. Write "
        "`parameters: 8.0e+9`, say, or `hours` under resources.train and resources.generate."
    )


@cache
def _weights(folder: Path) -> int:
    """The bytes of a folder's weights."""
    endings = ("*.safetensors", "*.bin")
    return next((size for ending in endings if (size := sum(file.stat().st_size for file in folder.glob(ending)))), 0)


def _answering(catalogue: Catalogue, model: str, work: float) -> Estimate:
    """Of work that is a multiple of SEP's answers."""
    needed = catalogue.resources(model, "generate")
    if needed.hours is not None:
        return Estimate(needed.hours * work, "guessed")
    return Estimate(_answering_hours(catalogue, model, work, _accelerator(catalogue, needed)), "guessed")


def _answering_hours(catalogue: Catalogue, model: str, work: float, accelerator: Accelerator) -> float:
    weights = parameters(catalogue, model) * BYTES[catalogue.model(model).dtype]
    passes = work * ANSWERS / TOGETHER * NEW_TOKENS
    seconds = passes * weights / (accelerator.bandwidth * DECODING_SHARE)
    return (_start(weights) + seconds) / 3600


def _step_hours(
    catalogue: Catalogue, model: str, resolved: Resolved, needed: Resources, accelerator: Accelerator
) -> float:
    """The guess of a step, whatever is known of it."""
    if resolved.stage != "train":
        return _answering_hours(catalogue, model, answering_work(resolved), accelerator)
    devices = max(1, needed.gpu) * needed.nodes
    return _training_hours(catalogue, model, training_work(catalogue, resolved), devices, accelerator)


def _training_hours(catalogue: Catalogue, model: str, work: float, devices: int, accelerator: Accelerator) -> float:
    count = parameters(catalogue, model)
    seconds = work * count / (devices * accelerator.flops * TRAINING_SHARE)
    return (_start(count * BYTES[catalogue.model(model).dtype]) + seconds) / 3600


def _start(weights: float) -> float:
    return START_SECONDS + weights / LOADING


def _accelerator(catalogue: Catalogue, needed: Resources) -> Accelerator:
    """What a job of a model runs on: GPUs of the configuration's kind, or threads."""
    if needed.gpu:
        return ACCELERATORS[catalogue.accelerator]
    return Accelerator(CPU_THREAD.flops * needed.threads, CPU_THREAD.bandwidth * needed.threads, 0.0)


# --- what was measured ---


def _measured(rule: str, model: str, name: str, *, of_step: bool = False) -> Estimate | None:
    """The median of what the same work took here, whatever came before it and at whichever seed; None for none.

    Not the mean: what was interrupted and resumed has a time of its last part alone, and what other work stood beside
    has a long one.
    """
    times = (_seconds(file) for file in _timings(rule, model, of_step).get(name, ()))
    hours = [seconds / 3600 for seconds in times if seconds is not None]
    return Estimate(statistics.median(hours), "measured", max(hours)) if hours else None


@cache
def _timings(rule: str, model: str, of_step: bool) -> dict[str, list[Path]]:
    """{step, benchmark, trait or projection: the files that say how long it took on a model}."""
    found: dict[str, list[Path]] = {}
    for recipe in _entries(Path(TIMINGS, rule, model)):
        for entry in _entries(recipe):
            if of_step and entry.suffix == ".tsv":
                found.setdefault(recipe.name.rpartition("+")[2], []).append(entry)
            for file in () if of_step else _entries(entry):
                found.setdefault(file.stem, []).append(file)
    return found


def _entries(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _seconds(file: Path) -> float | None:
    """What a file of Snakemake's `benchmark` says; None for one that is not there or cannot be read as one."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return max(float(row["s"]) for row in csv.DictReader(lines, delimiter="\t"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
