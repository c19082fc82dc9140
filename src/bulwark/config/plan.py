"""What a job of the workflow reads, gets and needs: functions of the wildcards in its path.

Each takes the catalogue and then wildcards by name; a directive of a rule names a function or, by `of`, an attribute of
what it returns, and workflow/rules/common.smk passes the wildcards. Nothing here knows Snakemake. Unknown names, and
layers that a model does not have, raise ConfigurationError. What does not depend on the seed is found once and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bulwark import benchmarks, seals
from bulwark.config import checks, digests, paths, recipes, sources
from bulwark.config.catalogue import Catalogue, Resolved, Section
from bulwark.config.costs import estimates
from bulwark.config.costs.estimates import Estimate
from bulwark.config.space import ranges
from bulwark.config.standing.dry_run import TRIALS_OPENING
from bulwark.files import files_below
from bulwark.judges import JudgeSettings
from bulwark.miniature.settings import MiniatureSettings
from bulwark.settings import find, validated
from bulwark.steering.settings import check_layers
from bulwark.training.settings import WITHOUT_EFFECT


@dataclass(frozen=True)
class Work:
    """What a job gets beside its inputs.

    module: that does it, where there are several. settings: plain data that all jobs share: do not change it. code: a
    digest. time: that it is expected to take. resources: {gpu, nodes, mem_mb, runtime in minutes}.
    """

    module: str
    settings: Any
    code: str
    threads: int
    time: Estimate
    resources: dict[str, int]


# --- data ---


def download_source(catalogue: Catalogue, dataset: str) -> dict[str, Any]:
    """Where a data set is downloaded from."""
    return catalogue.dataset(dataset, "results/downloads/").source.model_dump(mode="json")


def records_files(catalogue: Catalogue, dataset: str, split: str) -> list[str]:
    """The files that records are read from: a download, the user's own, other records, or none (the miniature's)."""
    entity = catalogue.dataset(dataset, "results/data/")
    source = entity.source
    sources.check_dataset(catalogue, dataset)
    if source.mixture:
        wanted = find(entity.splits, split, f'split of the data set "{dataset}"', "results/data/")
        return [paths.records(part, str(wanted)) for part in source.mixture]
    if source.hub or source.url or source.urls:
        return [f"results/downloads/{dataset}/download.json"]
    if source.path and entity.parts:
        return [f"{source.path}/{part}" for part in entity.parts]
    if source.path:
        given = [source.path] if isinstance(source.path, str) else source.path.values()
        return [file for path in given for file in files_of(path)]
    return []


def files_of(path: str) -> list[str]:
    """A file of the user's, or all files below a folder: what is there is watched whole."""
    below = files_below(Path(path)) if Path(path).is_dir() else []
    return [f"{path}/{name}" for name in below] or [path]


def records_recipe(catalogue: Catalogue, dataset: str, split: str) -> dict[str, Any]:
    """Everything that decides the content of a split."""
    entity = catalogue.dataset(dataset)
    find(entity.splits, split, f'split of the data set "{dataset}"', "results/data/")
    world = _miniature(catalogue, entity.source.world).of_records() if entity.source.miniature else None
    if world is not None and entity.source.miniature != "pretraining":
        del world["pretraining"]  # the sizes of that one data set
    return {
        "dataset": entity.model_dump(mode="json", exclude={"description", "licence", "expected", "gated"}),
        "world": world,
        "code": digests.records_digest(entity.kind, entity.format, made=world is not None),
    }


# --- models ---


def model_description(catalogue: Catalogue, model: str) -> dict[str, Any]:
    entity = catalogue.model(model, "results/models/")
    source = entity.source.model_dump(mode="json")
    if entity.source.miniature is not None:
        source["miniature"] = _miniature(catalogue, model).of_model()
    return {"source": source, "template": entity.template}


def _miniature(catalogue: Catalogue, model: str) -> MiniatureSettings:
    """The settings of a miniature with its defaults, which are no code: where one changes, it counts as a setting."""
    where = catalogue.where("models", model, "source", "miniature")
    return validated(MiniatureSettings, catalogue.model(model).source.miniature, where)


def model_files(catalogue: Catalogue, model: str) -> list[str]:
    """All files of a model folder of the user's; if it is empty, the one by which such a folder is known."""
    sources.check_model(catalogue, model)
    path = catalogue.model(model).source.path
    found = files_of(path)
    return [f"{path}/config.json"] if found == [path] else found


def pretraining_records(catalogue: Catalogue, model: str) -> dict[str, str]:
    data = catalogue.model(model).source.data
    return {split: paths.records(data, split) for split in ("train", "validation")}


@cache
def pretraining(catalogue: Catalogue, model: str) -> Work:
    code = digests.code_digest(
        "bulwark.miniature.model:model_config",
        "bulwark.miniature.tokenizer:build_tokenizer",
        "bulwark.training.pretraining:pretrain",
    )
    time = estimates.pretraining(catalogue, model)
    return work(catalogue, model, code, time, model_description(catalogue, model), stage="pretrain")


def dtype(catalogue: Catalogue, model: str) -> str:
    """The numbers that a model's weights are held in while it answers."""
    return catalogue.model(model).dtype


def attention(catalogue: Catalogue, model: str) -> str:
    """How a model's attention is computed while it answers."""
    return catalogue.model(model).attention


def loading(catalogue: Catalogue, model: str) -> dict[str, Any]:
    """How a model's weights are held by jobs that answer and attack, as plain data of `Loading`."""
    entity = catalogue.model(model)
    gpus = max(1, catalogue.resources(model, "generate").gpu)
    return {"attention": entity.attention, "gpus": gpus, "gpu_gb": entity.gpu_gb}


def models_from(catalogue: Catalogue, origin: str) -> str:
    """A regular expression for the models of one kind of source; it matches nothing if there are none."""
    known = [re.escape(name) for name, model in catalogue.models.items() if getattr(model.source, origin) is not None]
    return "|".join(known) or "(?!)"


@cache
def blocks_of(catalogue: Catalogue, model: str) -> int | None:
    """The number of a model's blocks, where it is known before a job runs; else None, and the job checks."""
    entity = catalogue.model(model)
    if entity.source.miniature is not None:
        return _miniature(catalogue, model).model.layers
    sources.check_model(catalogue, model)
    file = Path(entity.source.path or f"results/models/{model}") / "config.json"
    if not file.exists():
        return entity.blocks
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("text_config", config).get("num_hidden_layers")


# --- steps ---


def _step(catalogue: Catalogue, model: str, recipe: str) -> Resolved:
    """The last step of a recipe as it is applied to a model."""
    return resolve(catalogue, "steps", model, recipe, None, f"results/checkpoints/{model}/{recipe}")


def step_inputs(catalogue: Catalogue, model: str, recipe: str, seed: str) -> dict[str, str]:
    """The parent's checkpoint, and the files under results/ that the step's settings name.

    In these, `{parent}` is the recipe before the step; what another step x makes of the same parent is `{prefix}x`.
    """
    asked = _step(catalogue, model, recipe).inputs
    parent = recipes.parent_of(recipe)
    prefix = "" if parent == recipes.BASE else f"{parent}+"
    return {
        "parent": paths.checkpoint(model, parent, seed),
        **filled(asked, model=model, parent=parent, prefix=prefix, seed=seed),
    }


@cache
def decisive_settings(catalogue: Catalogue, model: str, recipe: str) -> dict[str, Any]:
    """The settings of a step without those of its training that cannot change the result.

    Of one that answers, with the model's attention where it is not the usual one.
    """
    resolved = _step(catalogue, model, recipe)
    settings = resolved.plain
    if resolved.stage == "generate" and (own := attention(catalogue, model)) != "sdpa":
        return settings | {"attention": own}
    training = settings.get("training")
    if not isinstance(training, dict):
        return settings
    passing = WITHOUT_EFFECT - {"snapshots"}  # which are results, too
    return settings | {"training": {key: value for key, value in training.items() if key not in passing}}


@cache
def step(catalogue: Catalogue, model: str, recipe: str) -> Work:
    resolved = _step(catalogue, model, recipe)
    time = estimates.step(catalogue, model, recipes.last_step(recipe))
    return work(catalogue, model, digests.code_digest(*digests.step_roots(resolved.module)), time, resolved=resolved)


@cache
def trial(catalogue: Catalogue, model: str, recipe: str) -> dict[str, Any]:
    """In what the last step of a recipe differs from its step, by settings key; nothing if it is no trial."""
    return dict(_step(catalogue, model, recipe).trial)


def trials_told(catalogue: Catalogue, made: Iterable[tuple[str, str]]) -> str:
    """What is said of the trials among the (model, recipe) that a plan makes, each trial once; "" if there are none."""
    told: dict[tuple[str, str], list[str]] = {}
    for model, recipe in made:
        if trial(catalogue, model, recipe):
            told.setdefault((model, recipes.last_step(recipe)), []).append(recipe)
    lines = [
        f"{model}, {step} ({len(under)} to make): {ranges.named(trial(catalogue, model, under[0]))}"
        for (model, step), under in sorted(told.items(), key=lambda item: (item[0][0], recipes.trial_of(item[0][1])))
    ]
    return "\n  ".join([TRIALS_OPENING, *lines]) if lines else ""


def trials_to_choose(catalogue: Catalogue, model: str, recipe: str) -> list[str]:
    """The trials of which a recipe's last step, "aside.best", is the one with the lowest validation loss."""
    _step(catalogue, model, recipe)
    return list(catalogue.trials_to_choose(model, recipes.last_step(recipe), f"results/checkpoints/{model}/{recipe}"))


def trial_checkpoints(catalogue: Catalogue, model: str, recipe: str, seed: str) -> list[str]:
    """The checkpoints of these trials, in their order."""
    parent = recipes.parent_of(recipe)
    prefix = "" if parent == recipes.BASE else f"{parent}+"
    return [paths.checkpoint(model, f"{prefix}{trial}", seed) for trial in trials_to_choose(catalogue, model, recipe)]


def snapshot_source(catalogue: Catalogue, model: str, recipe: str, seed: str) -> str:
    """The checkpoint of the training that a recipe's last step is a snapshot of."""
    _step(catalogue, model, recipe)
    return paths.checkpoint(model, recipes.to_its_end(recipe), seed)


def snapshot_step(catalogue: Catalogue, model: str, recipe: str) -> int:
    """After how many optimizer steps a recipe's last step is meant."""
    _step(catalogue, model, recipe)
    return recipes.snapshot_of(recipes.last_step(recipe))[1]


def snapshot_code(catalogue: Catalogue) -> str:
    """A digest of the code that makes a checkpoint of what a training kept; how that is trained is the step's."""
    return digests.code_digest(digests.SNAPSHOT)


def choice_code(catalogue: Catalogue) -> str:
    """A digest of the code that chooses the best of trials."""
    return digests.code_digest(digests.CHOICE)


# --- answers and scores ---


def _benchmark(catalogue: Catalogue, model: str, recipe: str, benchmark: str) -> Resolved:
    """A benchmark as it is run on the checkpoints of a recipe."""
    where = f"results/scores/{model}/{recipe}/…/{benchmark}.json"
    return resolve(catalogue, "benchmarks", model, recipe, benchmark, where)


def answer_inputs(catalogue: Catalogue, model: str, recipe: str, seed: str, benchmark: str) -> dict[str, str]:
    """The checkpoint, the records, and the files under results/ that the benchmark's settings name.

    In these, `{parent}` is the recipe without its last step; the base model stands for its own parent. What `scoring`
    names is not among them.
    """
    resolved = _benchmark(catalogue, model, recipe, benchmark)
    asked = {name: path for name, path in resolved.inputs.items() if name not in _of_scoring(resolved)}
    return {
        "checkpoint": paths.checkpoint(model, recipe, seed),
        "records": benchmark_records(catalogue, model, recipe, benchmark),
        **filled(asked, model=model, recipe=recipe, parent=_compared_with(recipe), seed=seed),
    }


def scoring_inputs(catalogue: Catalogue, model: str, recipe: str, seed: str, benchmark: str) -> dict[str, str]:
    """The files under results/ that the settings under `scoring` name; `{parent}` in them as for answers."""
    asked = _of_scoring(_benchmark(catalogue, model, recipe, benchmark))
    return filled(asked, model=model, recipe=recipe, parent=_compared_with(recipe), seed=seed)


def _compared_with(recipe: str) -> str:
    """The recipe that `{parent}` is of a benchmark on a recipe: without its last step; the base model is its own."""
    return recipe if recipe == recipes.BASE else recipes.parent_of(recipe)


def _of_scoring(resolved: Resolved) -> dict[str, str]:
    scoring = getattr(resolved.settings, "scoring", None)
    return scoring.inputs() if scoring is not None else {}


def benchmark_records(catalogue: Catalogue, model: str, recipe: str, benchmark: str) -> str:
    resolved = _benchmark(catalogue, model, recipe, benchmark)
    return paths.records(resolved.dataset, resolved.split)


@cache
def answers(catalogue: Catalogue, model: str, recipe: str, benchmark: str) -> Work:
    """With all settings but `scoring`, which only scoring reads: a change there generates nothing anew."""
    resolved = _benchmark(catalogue, model, recipe, benchmark)
    settings = {key: value for key, value in resolved.plain.items() if key != "scoring"}
    time = estimates.answers(catalogue, model, benchmark)
    return work(catalogue, model, digests.answers_digest(resolved.module), time, settings, resolved=resolved)


@cache
def scores(catalogue: Catalogue, model: str, recipe: str, benchmark: str) -> Work:
    resolved = _benchmark(catalogue, model, recipe, benchmark)
    return work(catalogue, model, _scoring_code(resolved), resolved=resolved)


def judge_files(judge: JudgeSettings | None) -> list[str]:
    """The files of a judge that is a model in a folder of the user's; none for any other judge."""
    path = getattr(judge.own, "path", None) if judge is not None else None
    local = path is not None and Path(path).is_dir() and not seals.is_result(path)
    return files_of(path) if local else []


@cache
def benchmark_judge(catalogue: Catalogue, model: str, recipe: str, benchmark: str) -> list[str]:
    """The files of the user's that scoring a benchmark reads: of its judge, and what its settings name."""
    resolved = _benchmark(catalogue, model, recipe, benchmark)
    origin = catalogue.settings_origin("benchmarks", benchmark, model)
    named = getattr(getattr(resolved.settings, "scoring", None), "files", dict)()
    own = [sources.file_there(path, origin.at("scoring", key)) for key, path in named.items()]
    return judge_files(benchmarks.benchmark_of(resolved.module, resolved.settings).judge()) + own


@cache
def _scoring_code(resolved: Resolved) -> str:
    judge = benchmarks.benchmark_of(resolved.module, resolved.settings).judge()
    return digests.scores_digest(resolved.module, judge and judge.kind)


# --- analyses ---


@cache
def analysis(catalogue: Catalogue, model: str, recipe: str, analysis: str) -> Work:
    where = f"results/analyses/{model}/{recipe}/…/{analysis}.json"
    recipes.check(recipe, catalogue.steps, where)
    entity = catalogue.analysis(model, recipe, analysis, where)
    code = digests.code_digest("bulwark.analyses:analyse_file", f"bulwark.analyses.{entity.module}")
    return work(catalogue, model, code, settings=entity.settings, module=entity.module)


# --- shared ---


def work(
    catalogue: Catalogue,
    model: str,
    code: str,
    time: Estimate = estimates.NOTHING,
    settings: Any = None,
    *,
    resolved: Resolved | None = None,
    module: str = "",
    stage: str = "generate",
) -> Work:
    """The work on a model; `resolved` stands for its module, stage and, unless they are given, settings.

    time: none for what is done where Snakemake runs.
    """
    if resolved is not None:
        module, stage = resolved.module, resolved.stage
        settings = resolved.plain if settings is None else settings
    threads = catalogue.resources(model, stage).threads
    return Work(module, settings, code, threads, time, resources_of(catalogue, model, stage, time))


def resources_of(catalogue: Catalogue, model: str, stage: str, time: Estimate) -> dict[str, int]:
    """What a job of `stage` asks for: as config/models/<model>.yaml says, and how long it may take."""
    needed = catalogue.resources(model, stage)
    return {
        "gpu": needed.gpu,
        "nodes": needed.nodes,
        "mem_mb": int(needed.mem_gb * 1000),
        "runtime": time.minutes(needed.gpu),
    }


def filled(templates: dict[str, str], **names: str) -> dict[str, str]:
    """Path templates below results/, with their names filled in."""
    return {name: f"results/{path.format(**names)}" for name, path in templates.items()}


@cache
def resolve(catalogue: Catalogue, section: Section, model: str, recipe: str, name: str | None, where: str) -> Resolved:
    """An entity as it is on the checkpoints of a recipe; None: the recipe's last step.

    Raises ConfigurationError for unknown names, for settings that do not fit together, and if they name layers that
    the model does not have.
    """
    recipes.check(recipe, catalogue.steps, where)
    for step in recipes.steps_of(recipe):
        catalogue.step(model, step, where)  # whether there is such a snapshot
    checks.check_template(catalogue, model, recipe)
    name = name or recipes.snapshot_of(recipes.last_step(recipe))[0]
    resolved = catalogue.resolve(section, model, name, where)
    if blocks := blocks_of(catalogue, model):
        origin = catalogue.settings_origin(section, name, model)
        check_layers(resolved.settings, blocks, lambda key: f"{where}: {origin.at(*key.split('.'))}")
    checks.check_resolved(catalogue, section, model, name)
    return resolved
