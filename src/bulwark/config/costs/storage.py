"""What a plan needs beside time: disk, downloads with their gates, files of the user's, and judges that are asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bulwark.config import recipes
from bulwark.config.catalogue import Catalogue
from bulwark.config.costs.accelerators import ACCELERATORS
from bulwark.config.costs.amounts import rows_of
from bulwark.config.costs.estimates import BYTES, parameters
from bulwark.config.costs.graph import Job
from bulwark.config.costs.schedule import Schedule
from bulwark.jobs.memory import gpus_of_weights
from bulwark.judges import JudgeSettings, module_of
from bulwark.models.placing.loading import FOUR_BIT

# AdamW's state of a training that can be resumed, per trained parameter, and how many there are while one is written
# (docs/architecture.md, "What saving costs"); adapters train about a hundredth of the parameters.
STATE_BYTES = {True: 12, False: 14}  # by whether there is one number format or masters beside bfloat16
STATES = 2
ADAPTERS = 0.01
ANSWER_BYTES = 4_000  # prompt and answer, with what is recorded of both
JUDGE_TOKENS = (1_000, 100)  # read and written per question
COHERENCE = 2  # questions per answer: the trait, and whether the answer is coherent


@dataclass(frozen=True)
class Disk:
    """In bytes. kept: everything at the end. peak: the most at any time, with the states of trainings under way.

    freed: the most at any time if the weights of each checkpoint are removed once no job of the plan reads them.
    checkpoints: how many have weights of their own. removable: the weights that nothing of the plan reads at the end.
    """

    kept: float
    peak: float
    freed: float
    checkpoints: int
    removable: float


@dataclass(frozen=True)
class Download:
    """size: in bytes; None where nobody says. gated: whether consent and a token are asked for. own: a user's path."""

    kind: str
    name: str
    size: float | None
    gated: bool = False
    own: str = ""


@dataclass(frozen=True)
class Asked:
    """A judge that is asked over the network: how many questions, and their price in US dollars where one is given."""

    judge: str
    questions: float
    price: float | None


@dataclass(frozen=True)
class Crowded:
    """Jobs of a model that answer or attack get too few GPUs for its weights. enough: how many would do."""

    model: str
    weights: float
    gpus: int
    card: float
    enough: int


def crowded(catalogue: Catalogue, jobs: Sequence[Job]) -> list[Crowded]:
    """The models whose weights do not fit on the GPUs that the plan's jobs of the stage `generate` get."""
    most: dict[str, float] = {}
    for job in jobs:
        entity = catalogue.models.get(job.model) if job.gpus else None
        if entity is not None and (entity.parameters is not None or entity.source.path is not None):  # else none says
            most[job.model] = max(most.get(job.model, 0.0), _held(catalogue, job))
    card = ACCELERATORS[catalogue.accelerator].memory
    found = []
    for model, weights in sorted(most.items()):
        gpus = catalogue.resources(model, "generate").gpu
        if (enough := gpus_of_weights(weights, card)) > gpus:
            found.append(Crowded(model, weights, gpus, card, enough))
    return found


def _held(catalogue: Catalogue, job: Job) -> float:
    """Bytes of the weights that a job holds which answers or attacks; 0 for any other."""
    each = BYTES[catalogue.model(job.model).dtype]
    if job.rule == "apply_step":
        step = catalogue.step(job.model, recipes.last_step(job.wildcards["recipe"]))
        if step.stage != "generate":
            return 0.0
        each = FOUR_BIT if getattr(step.settings, "quantised", None) else each
    elif job.rule in ("apply_steps", "pretrain_model"):
        return 0.0
    return parameters(catalogue, job.model) * each


def disk(catalogue: Catalogue, jobs: Sequence[Job], planned: Schedule) -> Disk:
    """What the plan writes, and how much of it lies there at once when its jobs run as scheduled."""
    last = list(planned.ends)  # until when what a job makes is read
    for place, job in enumerate(jobs):
        for needed in job.needs:
            last[needed] = max(last[needed], planned.ends[place])
    kept: list[tuple[float, float]] = []
    freed: list[tuple[float, float]] = []
    total = removable = 0.0
    checkpoints = 0
    for place, job in enumerate(jobs):
        weights, other, state = _written(catalogue, job)
        checkpoints += len(job.makes) if job.rule == "apply_steps" else weights > 0 and job.rule == "apply_step"
        total += weights + other
        begins, ends = planned.begins[place], planned.ends[place]
        for events in (kept, freed):
            events += [(begins, weights + other + state), (ends, -state)]
        if job.stage == "steps":
            removable += weights
            freed.append((last[place], -weights))
    return Disk(total, _highest(kept), _highest(freed), checkpoints, removable)


def _highest(events: list[tuple[float, float]]) -> float:
    now = most = 0.0
    for _, change in sorted(events):  # of one time, what is removed comes first
        now += change
        most = max(most, now)
    return most


def _written(catalogue: Catalogue, job: Job) -> tuple[float, float, float]:
    """Bytes of the weights that a job writes, of all else that stays, and of a training's state while it runs."""
    if job.rule in ("apply_step", "apply_steps"):
        made = [job.wildcards["recipe"]] if job.rule == "apply_step" else list(job.makes)
        parts = [_of_step(catalogue, job.model, recipe) for recipe in made]
        return sum(weights for weights, _ in parts), 0.0, max(state for _, state in parts)
    if job.rule == "download_model":
        return parameters(catalogue, job.model) * BYTES[catalogue.model(job.model).dtype], 0.0, 0.0
    if job.rule == "download_dataset":
        megabytes = catalogue.dataset(job.wildcards["dataset"]).expected.megabytes
        return 0.0, (megabytes or 0.0) * 1e6, 0.0
    if job.rule == "generate_answers":
        return 0.0, _answers(catalogue, job.model, job.wildcards["benchmark"]) * ANSWER_BYTES, 0.0
    return 0.0, 0.0, 0.0


def _of_step(catalogue: Catalogue, model: str, recipe: str) -> tuple[float, float]:
    """Bytes of the weights that a step leaves, its snapshots with them, and of its state while it trains."""
    entity = catalogue.model(model)
    if entity.parameters is None and entity.source.path is None:
        return 0.0, 0.0  # made here, and its file does not say how large it is
    count = parameters(catalogue, model)
    training = getattr(catalogue.step(model, recipes.last_step(recipe)).settings, "training", None)
    if training is None or not hasattr(training, "precision"):
        return count * BYTES[entity.dtype], 0.0
    plain = training.precision == "float32" or training.zero_stage == 3
    state = STATES * STATE_BYTES[plain] * count * (ADAPTERS if training.lora else 1.0)
    return count * BYTES[entity.dtype] * (1 + len(training.snapshots)), state


def _answers(catalogue: Catalogue, model: str, benchmark: str) -> float:
    """How many answers a benchmark asks for, as far as the configuration says."""
    resolved = catalogue.benchmark(model, benchmark)
    return rows_of(catalogue, resolved.dataset, resolved.split) * getattr(resolved.settings, "samples", 1)


def downloads(catalogue: Catalogue, jobs: Sequence[Job]) -> list[Download]:
    """What is fetched, models first, and which files are the user's own."""
    found: dict[tuple[str, str], Download] = {}
    for job in jobs:
        if job.rule in ("download_model", "adopt_model"):
            entity = catalogue.model(job.model)
            size = parameters(catalogue, job.model) * BYTES[entity.dtype] if entity.parameters else None
            found["model", job.model] = Download("model", job.model, size, entity.gated, entity.source.path or "")
        elif job.rule in ("download_dataset", "prepare_dataset"):
            name = job.wildcards["dataset"]
            data = catalogue.dataset(name)
            own = str(data.source.path or "")
            if own or job.rule == "download_dataset":
                megabytes = data.expected.megabytes
                found["records", name] = Download("records", name, megabytes and megabytes * 1e6, data.gated, own)
        elif job.rule == "adopt_vectors":
            name = job.wildcards["trait"]
            found["vectors", name] = Download("vectors", name, None, own=catalogue.trait(name).files[job.model])
    return sorted(found.values(), key=lambda each: (each.kind != "model", -(each.size or 0.0), each.name))


def judges(catalogue: Catalogue, jobs: Sequence[Job]) -> list[Asked]:
    """The judges that are asked over the network, the most questions first."""
    questions: dict[tuple[str, tuple[float, float] | None], float] = defaultdict(float)
    for job in jobs:
        if job.rule == "score_answers":
            resolved = catalogue.benchmark(job.model, job.wildcards["benchmark"])
            scoring = getattr(resolved.settings, "scoring", None)
            judge = getattr(scoring, "judge", None)
            each = COHERENCE if getattr(scoring, "coherence", False) else 1
            count = each * _answers(catalogue, job.model, job.wildcards["benchmark"])
        elif job.rule in ("judge_contrasts", "choose_layer"):
            trait = catalogue.trait(job.wildcards["trait"])
            judge = catalogue.judge_of_trait(job.wildcards["trait"])
            rows = rows_of(catalogue, trait.dataset or "", trait.split)
            if job.rule == "judge_contrasts":
                count = rows * 2 * trait.contrasts.rollouts * COHERENCE
            else:
                count = rows * (len(trait.choice.candidates or ()) or (catalogue.model(job.model).blocks or 1) - 1)
        else:
            continue
        asks = getattr(module_of(judge.kind), "asks", None) if isinstance(judge, JudgeSettings) else None
        if asks is not None:
            prices = getattr(judge.own, "prices", None)
            questions[asks(judge.own), prices and (prices.prompt, prices.completion)] += count
    found = [
        Asked(name, count, prices and count * sum(a * b for a, b in zip(prices, JUDGE_TOKENS, strict=True)) / 1e6)
        for (name, prices), count in questions.items()
    ]
    return sorted(found, key=lambda each: -each.questions)
