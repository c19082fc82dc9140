"""Whether a configuration holds together: every name, every setting, and what entities say of each other.

All of it is checked before any job, when the workflow reads the configuration (`bulwark.config.loading.load`). Every
function raises ConfigurationError for the first thing that is wrong, with where it stands and the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import analyses as analysis_modules
from bulwark import benchmarks as benchmark_modules
from bulwark.config import recipes
from bulwark.config.catalogue import Catalogue, Section
from bulwark.config.entities import Analysis, Dataset, Model, Study, Trait
from bulwark.data.contrasts import KIND as CONTRAST
from bulwark.data.records import SCHEMAS
from bulwark.errors import ConfigurationError
from bulwark.miniature import records as miniature_records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.prompts.builder import TEMPLATES
from bulwark.settings import Closed, find, module_named, validated
from bulwark.steering.schedules import ScheduleSettings, detected_from
from bulwark.steering.vectors import projections
from bulwark.steps.steer import SteeredTraining

if TYPE_CHECKING:
    from bulwark.reporting.settings import Claim, Figure, Table


def check(catalogue: Catalogue) -> None:
    """Check every name and every setting. Raises ConfigurationError for the first wrong one."""
    for name, model in catalogue.models.items():
        _check_model(catalogue, name, model)
    for name, dataset in catalogue.datasets.items():
        _check_dataset(catalogue, name, dataset)
    for name, trait in catalogue.traits.items():
        _check_trait(catalogue, name, trait)
    for kind in ("steps", "benchmarks", "projections"):
        for name, entity in getattr(catalogue, kind).items():
            where = f"config/{kind}/{name}.yaml"
            for model in entity.models:
                catalogue.model(model, f"{where}: models")
            for model in [None, *catalogue.models]:
                _check_resolved(catalogue, kind, model, name, where)
    for name, analysis in catalogue.analyses.items():
        _check_analysis(catalogue, name, analysis)
    for name, study in catalogue.studies.items():
        _check_study(catalogue, f"studies.{name}", study)
    for kind, entities in (("tables", catalogue.tables), ("figures", catalogue.figures), ("claims", catalogue.claims)):
        for name, entity in entities.items():
            where = f"config/{kind}/{name}.yaml"
            for benchmark, metric in entity.metrics():
                find(_metrics_of(catalogue, benchmark, where), metric, f"metric of {benchmark}", where)
            for recipe in entity.recipes():
                recipes.check(recipe, catalogue.steps, where)


def _check_resolved(catalogue: Catalogue, kind: Section, model: str | None, name: str, where: str) -> None:
    """A step, benchmark or projection as it is on a model, or on a model that it does not mention (None)."""
    resolved = catalogue.resolve(kind, model, name)
    settings = resolved.settings
    records, tokens = (resolved.dataset, resolved.split), getattr(settings, "max_tokens", None)
    if kind == "steps":
        training = getattr(settings, "training", None)
        records, tokens = (getattr(settings, "data", None), "train"), training and training.max_tokens
    if kind == "benchmarks":
        catalogue.dataset(resolved.dataset, f"{where}: dataset")
        benchmark_modules.benchmark_of(resolved.module, settings).judge(where)
    if kind == "projections":
        _check_input(catalogue, f"data/{resolved.dataset}/{resolved.split}.jsonl", f"{where}: dataset")
    for path in resolved.inputs.values():
        _check_input(catalogue, path, f"{where}: settings")
        if kind != "projections":
            _check_compared(catalogue, path, model, settings, records, tokens, f"{where}: settings")
    if kind == "steps":
        _check_onset(catalogue, model, name, settings)


def _metrics_of(catalogue: Catalogue, name: str, where: str) -> Mapping[str, bool | None]:
    """The metrics of a benchmark or, under the same key, of an analysis."""
    if name in catalogue.analyses:
        return analysis_modules.module_of(catalogue.analyses[name].module).METRICS
    return benchmark_modules.module_of(find(catalogue.benchmarks, name, "benchmark", where).module).METRICS


def _check_analysis(catalogue: Catalogue, name: str, analysis: Analysis) -> None:
    where = f"config/analyses/{name}.yaml"
    module = module_named(analysis_modules.__name__, analysis.module, "analysis module", f"{where}: module")
    validated(module.Settings, analysis.settings, f"{where}, settings")
    if name in catalogue.benchmarks:
        raise ConfigurationError(f'{where}: a benchmark is called "{name}" as well; no table could tell which.')


def _check_model(catalogue: Catalogue, name: str, model: Model) -> None:
    where = f"config/models/{name}.yaml"
    find(TEMPLATES, model.template, "prompt template", where)
    if model.source.miniature is not None:
        validated(MiniatureSettings, model.source.miniature, f"{where}, source.miniature")
        find(catalogue.datasets, model.source.data, "dataset", f"{where}, source.data")
        catalogue.resources(name, "pretrain")


def _check_dataset(catalogue: Catalogue, name: str, dataset: Dataset) -> None:
    where = f"config/datasets/{name}.yaml"
    if dataset.kind not in (*SCHEMAS, CONTRAST):
        module_named(benchmark_modules.__name__, dataset.kind, "kind of records", f"{where}: kind")
    if dataset.source.miniature is not None:
        catalogue.model(dataset.source.world, f"{where}: source.world")
        known = miniature_records.splits(dataset.source.miniature)
        for split, wanted in dataset.splits.items():
            source_split = wanted if isinstance(wanted, str) else split
            find(dict.fromkeys(known), source_split, "split of the miniature's data set", f"{where}: splits")


def _check_trait(catalogue: Catalogue, name: str, trait: Trait) -> None:
    where = f"config/traits/{name}.yaml"
    catalogue.judge_of_trait(name)
    for model in trait.files:
        catalogue.model(model, f"{where}: files")
    if trait.dataset is not None:
        dataset = catalogue.dataset(trait.dataset, f"{where}: dataset")
        find(dataset.splits, trait.split, f'split of the dataset "{trait.dataset}"', f"{where}: split")
        if dataset.kind != CONTRAST:
            raise ConfigurationError(
                f'{where}: the dataset "{trait.dataset}" holds records of the kind "{dataset.kind}"; a trait is '
                f'extracted from one of the kind "{CONTRAST}".'
            )


def _check_input(catalogue: Catalogue, path: str, where: str) -> None:
    """Whether a file that a step or benchmark asks for can be made, as far as its path names a data set."""
    stage, *rest = path.split("/")
    if stage == "data":
        dataset, file = rest
        splits = catalogue.dataset(dataset, where).splits
        find(splits, file.removesuffix(".jsonl"), f'split of the dataset "{dataset}"', where)
    if stage == "checkpoints" and rest[1] != "{parent}":
        recipes.check(rest[1].removeprefix("{prefix}"), catalogue.steps, where)
    if stage == "vectors":
        catalogue.trait(Path(rest[-1]).stem, where)
    if stage == "projections":
        find(catalogue.projections, Path(rest[-1]).stem, "projection", where)


def _check_compared(
    catalogue: Catalogue, path: str, model: str | None, settings: Closed, records: Any, tokens: int | None, where: str
) -> None:
    """Whether the projections that a step or benchmark compares itself with are of its own records and vectors."""
    if path.startswith("projections/"):
        name = Path(path).stem
        there = catalogue.projection(model, name, where)
        made = projections.comparable(
            there.settings.vectors,
            there.settings.max_tokens,
            there.settings.mode,
            records=(there.dataset, there.split),
        )
        needed = projections.comparable(settings.vectors, tokens, records=records)
        projections.check_projections(name, made, needed, where)


def _check_onset(catalogue: Catalogue, model: str | None, name: str, settings: Closed) -> None:
    """Whether the training in which a step's onset is to be found can show one to it."""
    for schedule in (getattr(settings, "schedule", None), getattr(settings, "mean_of", None)):
        other = detected_from(schedule)
        if other is None:
            continue
        where = f"config/steps/{name}.yaml: schedule.onset.detected_from"
        if other == name:
            raise ConfigurationError(
                f'{where}: "{name}" is the step itself. Name one that steers at constant strength.'
            )
        there = catalogue.step(model, other, where).settings
        if not isinstance(there, SteeredTraining) or there.schedule != ScheduleSettings():
            raise ConfigurationError(
                f'{where}: the step "{other}" does not steer at constant strength to the end. Name one that does, such '
                "as steer: the onset is where the cosines of its gradients settle."
            )
        if there.vectors != settings.vectors:
            raise ConfigurationError(
                f'{where}: the step "{other}" has the vectors {there.vectors}, not {settings.vectors}. Give both the '
                "same: the cosines are with the vectors that it steers with."
            )


def _check_study(catalogue: Catalogue, where: str, study: Study) -> None:
    for model in study.models:
        catalogue.model(model, f"{where}.models")
    for recipe in study.recipes:
        recipes.check(recipe, catalogue.steps, f"{where}.recipes")
    for benchmark in study.benchmarks:
        find(catalogue.benchmarks, benchmark, "benchmark", f"{where}.benchmarks")
    for analysis in study.analyses:
        find(catalogue.analyses, analysis, "analysis", f"{where}.analyses")
    for kind in ("tables", "figures", "claims"):
        for name in getattr(study, kind):
            entity = find(getattr(catalogue, kind), name, kind[:-1], f"{where}.{kind}")
            check_measured(catalogue, entity, f"config/{kind}/{name}.yaml")


def check_measured(catalogue: Catalogue, entity: Table | Figure | Claim, where: str) -> None:
    """Whether the study of a table, figure or claim measures what it speaks of. Raises ConfigurationError."""
    study = find(catalogue.studies, entity.study, "study", where)
    needed = entity.required_benchmarks()
    if not study.models:
        raise ConfigurationError(f"{where}: studies.{entity.study}.models is empty, so there is nothing to show.")
    for kind, key, names, listed in (
        ("benchmark", "benchmarks", [name for name in needed if name not in catalogue.analyses], study.benchmarks),
        ("analysis", "analyses", [name for name in needed if name in catalogue.analyses], study.analyses),
        ("recipe", "recipes", entity.recipes(), study.recipes),
    ):
        for name in names:
            if name not in listed:
                raise ConfigurationError(
                    f'{where}: needs the {kind} "{name}", which studies.{entity.study}.{key} does not list '
                    f"({', '.join(listed)}). Add it to the list, or take the entity out of the study."
                )
    if not set(entity.benchmarks()) & {*study.benchmarks, *study.analyses}:
        raise ConfigurationError(f"{where}: studies.{entity.study} measures nothing of what it shows.")
    for analysis in set(entity.benchmarks()) & set(catalogue.analyses):
        for model in study.models:
            for recipe in entity.recipes() or study.recipes:
                catalogue.analysis(model, recipe, analysis, where)
