"""Whether a configuration holds together: every name, every setting, and what entities say of each other.

All of it is checked before any job, when the workflow reads the configuration (`bulwark.config.loading.load`). Every
function raises ConfigurationError for the first thing that is wrong, with where it stands and the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bulwark import analyses as analysis_modules
from bulwark import benchmarks as benchmark_modules
from bulwark.config import paths, recipes
from bulwark.config.catalogue import Catalogue, Section
from bulwark.config.entities import MIXTURE, Analysis, Dataset, Model, Study, Trait
from bulwark.config.overlays import Origin, check_name
from bulwark.config.space import ranges
from bulwark.data.contrasts import KIND as CONTRAST
from bulwark.data.records import SCHEMAS, TRAINABLE
from bulwark.errors import CombinationError, ConfigurationError
from bulwark.miniature import records as miniature_records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.prompts.templates import TEMPLATES, in_form
from bulwark.reporting.columns import stands_for, those_named
from bulwark.settings import Closed, find, module_named, validated
from bulwark.steering.schedules import ScheduleSettings, detected_from
from bulwark.steering.vectors import projections
from bulwark.steps import prompted
from bulwark.steps.steer import SteeredTraining

_SHOWN = ("tables", "figures", "claims")

if TYPE_CHECKING:
    from bulwark.reporting.settings import Claim, Figure, Table


@dataclass
class Use:
    """What the studies of a configuration need, directly or for something else that they need.

    resolved: steps, benchmarks and projections as they are on a model. traits: on a model.
    """

    models: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    traits: set[tuple[str, str]] = field(default_factory=set)
    resolved: set[tuple[Section, str, str]] = field(default_factory=set)


def in_use(catalogue: Catalogue) -> Use:
    """Follow the studies to everything they need. Raises ConfigurationError for unknown names and wrong settings."""
    use = Use()
    for study in catalogue.studies:
        for model, recipe, benchmark in {(model, recipe, name) for model, recipe, _, name in catalogue.cells(study)}:
            _use_recipe(catalogue, use, model, recipe)
            _use(catalogue, use, "benchmarks", model, benchmark)
    return use


def _use_recipe(catalogue: Catalogue, use: Use, model: str, recipe: str) -> None:
    use.models.add(model)
    source = catalogue.model(model).source
    if source.data is not None:
        use.datasets.add(source.data)
    check_template(catalogue, model, recipe)
    for step in recipes.steps_of(recipe):
        catalogue.step(model, step)  # whether there is such a snapshot
        step = recipes.snapshot_of(step)[0]
        for each in catalogue.trials_to_choose(model, step) if recipes.best_of(step) else (step,):
            _use(catalogue, use, "steps", model, each)


def _use(catalogue: Catalogue, use: Use, section: Section, model: str, name: str) -> None:
    """A step, benchmark or projection, and what its settings name."""
    if (section, model, name) in use.resolved:
        return
    use.resolved.add((section, model, name))
    resolved = catalogue.resolve(section, model, name)
    if resolved.dataset:
        use.datasets.add(resolved.dataset)
    for path in resolved.inputs.values():
        _check_input(catalogue, path, catalogue.where(section, name, "settings"))
        stage, *folders, file = path.split("/")
        if stage == "data":
            use.datasets.add(folders[0])
        if stage == "checkpoints" and folders[1] != "{parent}":
            _use_recipe(catalogue, use, model, folders[1].removeprefix("{prefix}"))
        if stage == "projections":
            _use(catalogue, use, "projections", model, Path(file).stem)
        if stage == "vectors":
            use.traits.add((model, Path(file).stem))
            trait = catalogue.trait(Path(file).stem)
            if model not in trait.files and trait.dataset is not None:
                use.datasets.add(trait.dataset)


def check(catalogue: Catalogue) -> None:
    """Check a configuration. Raises ConfigurationError for the first thing that is wrong.

    Names and keys are checked everywhere. Whether settings fit together is checked for what the studies use; of
    anything else it is checked when a path asks for it (`check_resolved`).
    """
    for name, model in catalogue.models.items():
        _check_model(catalogue, name, model)
    for name, dataset in catalogue.datasets.items():
        _check_dataset(catalogue, name, dataset)
    for name, trait in catalogue.traits.items():
        _check_trait(catalogue, name, trait)
    for kind in ("steps", "benchmarks", "projections"):
        for name, entity in getattr(catalogue, kind).items():
            for model in entity.models:
                catalogue.model(model, catalogue.where(kind, name, "models", model))
            for on in [None, *entity.models]:
                _check_names(catalogue, kind, on, name)
    for name, analysis in catalogue.analyses.items():
        _check_analysis(catalogue, name, analysis)
    for name, study in catalogue.studies.items():
        _check_study(catalogue, name, study)
    for kind, entities in (("tables", catalogue.tables), ("figures", catalogue.figures), ("claims", catalogue.claims)):
        for name, entity in entities.items():
            where = catalogue.where(kind, name)
            for benchmark, metric in entity.metrics():
                find(_metrics_of(catalogue, benchmark, where), metric, f"metric of {benchmark}", where)
            for recipe in () if entity.lacks_attacks else entity.recipes():
                recipes.check(recipe, catalogue.steps, where)
    used = in_use(catalogue)
    # In the order of their files, so that a mistake is reported of what others are like.
    for kind in ("steps", "benchmarks", "projections"):
        names = {name: number for number, name in enumerate(getattr(catalogue, kind))}
        of_kind = [(name, on) for section, on, name in used.resolved if section == kind]
        for name, on in sorted(of_kind, key=lambda pair: (names[recipes.entity_of(pair[0])], pair)):
            check_resolved(catalogue, kind, on, name)
    for model in sorted(used.models):
        if catalogue.models[model].source.miniature is not None:
            catalogue.resources(model, "pretrain")
    for _, trait in sorted(used.traits):
        check_contrasts(catalogue, trait)


def _check_names(catalogue: Catalogue, kind: Section, model: str | None, name: str) -> None:
    """The keys and names in a step, benchmark or projection; values may still not fit together."""
    try:
        resolved = catalogue.resolve(kind, model, name)
    except CombinationError:
        return
    if kind == "benchmarks":
        catalogue.dataset(resolved.dataset, catalogue.where(kind, name, "dataset"))
        benchmark_modules.benchmark_of(resolved.module, resolved.settings).judge(catalogue.where(kind, name))
    if kind == "projections":
        _check_input(
            catalogue, f"data/{resolved.dataset}/{resolved.split}.jsonl", catalogue.where(kind, name, "dataset")
        )
    for path in resolved.inputs.values():
        paths.check_places(kind, path, catalogue.settings_origin(kind, name, model)())
        _check_input(catalogue, path, catalogue.settings_origin(kind, name, model)())
    for values in ranges.checked(resolved.space) if resolved.space else ():
        where = catalogue.origins[kind, name].settings(model, "space").at(next(iter(values)))
        try:
            varied = catalogue.varied(model, name, values)
        except CombinationError:
            if catalogue.steps[name].grid:  # each of its trials is checked by itself, if it is used
                continue
            raise
        for path in varied.inputs.values():
            _check_input(catalogue, path, f"{where} ({ranges.named(values)})")


def check_resolved(catalogue: Catalogue, kind: Section, model: str, name: str) -> None:
    """Whether the settings of a step, benchmark or projection on a model fit together, and with what they name."""
    resolved = catalogue.resolve(kind, model, name)
    settings = resolved.settings
    where = catalogue.settings_origin(kind, name, model)()
    records, tokens = (resolved.dataset, resolved.split), getattr(settings, "max_tokens", None)
    if kind == "steps":
        training = getattr(settings, "training", None)
        records, tokens = (getattr(settings, "data", None), "train"), training and training.max_tokens
        _check_onset(catalogue, model, name, settings)
    for path in resolved.inputs.values() if kind != "projections" else ():
        _check_compared(catalogue, path, model, settings, records, tokens, where)


def check_template(catalogue: Catalogue, model: str, recipe: str) -> None:
    """Whether each step of a recipe that puts the model's prompt template into another form finds one that has it."""
    template = catalogue.model(model).template
    for step in recipes.steps_of(recipe):
        settings = catalogue.step(model, step).settings
        if isinstance(settings, prompted.Settings):
            try:
                template = in_form(template, settings.form)
            except ConfigurationError as error:
                where = catalogue.settings_origin("steps", step, model).at("form")
                raise CombinationError(f'{where}: in the recipe "{recipe}" of {model}: {error}') from None


def _metrics_of(catalogue: Catalogue, name: str, where: str) -> Mapping[str, bool | None]:
    """The metrics of a benchmark or, under the same key, of an analysis."""
    if name in catalogue.analyses:
        return analysis_modules.module_of(catalogue.analyses[name].module).METRICS
    return benchmark_modules.module_of(find(catalogue.benchmarks, name, "benchmark", where).module).METRICS


def _check_analysis(catalogue: Catalogue, name: str, analysis: Analysis) -> None:
    origin = catalogue.origins["analyses", name]
    module = module_named(analysis_modules.__name__, analysis.module, "analysis module", origin.at("module"))
    validated(module.Settings, analysis.settings, origin.below("settings"))
    if name in catalogue.benchmarks:
        raise ConfigurationError(f'{origin.at()}: a benchmark is called "{name}" as well; no table could tell which.')


def _check_model(catalogue: Catalogue, name: str, model: Model) -> None:
    origin = catalogue.origins["models", name]
    find(TEMPLATES, model.template, "prompt template", origin.at("template"))
    if model.source.miniature is not None:
        validated(MiniatureSettings, model.source.miniature, origin.below("source", "miniature"))
        find(catalogue.datasets, model.source.data, "dataset", origin.at("source", "data"))


def _check_dataset(catalogue: Catalogue, name: str, dataset: Dataset) -> None:
    origin = catalogue.origins["datasets", name]
    if dataset.kind not in (*SCHEMAS, CONTRAST, MIXTURE):
        module_named(benchmark_modules.__name__, dataset.kind, "kind of records", origin.at("kind"))
        schema = benchmark_modules.module_of(dataset.kind).Record
        fields = {path: None for path in _paths(schema)}
        # Records with a meta are chosen by it, and what is in it is the file's own.
        chosen = (("where", dataset.where), ("without", dataset.without)) if "meta" not in schema.model_fields else ()
        for said, values in chosen:
            for key in values:
                find(fields, key, f"field of the records of {dataset.kind}", origin.at(said, key))
    for split in dataset.splits:
        check_name(split, origin.at("splits", split), dots=False)
    for part in dataset.source.mixture or ():
        place = origin.at("source", "mixture", part)
        mixed = catalogue.dataset(part, place)
        if mixed.kind not in TRAINABLE:
            raise ConfigurationError(
                f'{place}: "{part}" holds records of the kind "{mixed.kind}"; a mixture is made of those that are '
                f"trained on: {', '.join(TRAINABLE)}."
            )
        for split, wanted in dataset.splits.items():
            find(mixed.splits, str(wanted), f'split of the dataset "{part}"', origin.at("splits", split))
    if dataset.source.miniature is not None:
        catalogue.model(dataset.source.world, origin.at("source", "world"))
        known = miniature_records.splits(dataset.source.miniature)
        for split, wanted in dataset.splits.items():
            source_split = wanted if isinstance(wanted, str) else split
            place = origin.at("splits", split)
            find(dict.fromkeys(known), source_split, "split of the miniature's data set", place)


def _paths(schema: type[BaseModel]) -> Iterator[str]:
    """The fields of a schema of records, and those inside of them: `info`, `info.type`."""
    for name, told in schema.model_fields.items():
        yield name
        if isinstance(told.annotation, type) and issubclass(told.annotation, BaseModel):
            yield from (f"{name}.{inside}" for inside in _paths(told.annotation))


def _check_trait(catalogue: Catalogue, name: str, trait: Trait) -> None:
    origin = catalogue.origins["traits", name]
    catalogue.judge_of_trait(name)
    for model in trait.files:
        catalogue.model(model, origin.at("files", model))
    if trait.dataset is not None:
        dataset = catalogue.dataset(trait.dataset, origin.at("dataset"))
        find(dataset.splits, trait.split, f'split of the dataset "{trait.dataset}"', origin.at("split"))


def check_contrasts(catalogue: Catalogue, name: str) -> None:
    """Whether a trait can be extracted from its data set. Raises ConfigurationError."""
    trait = catalogue.trait(name)
    dataset = catalogue.datasets[trait.dataset] if trait.dataset is not None else None
    if dataset is not None and dataset.kind != CONTRAST:
        raise ConfigurationError(
            f'{catalogue.where("traits", name, "dataset")}: the dataset "{trait.dataset}" holds records of the kind '
            f'"{dataset.kind}"; a trait is extracted from one of the kind "{CONTRAST}".'
        )


def _check_input(catalogue: Catalogue, path: str, where: str) -> None:
    """Whether a file that a step or benchmark asks for can be made, as far as its path names a data set."""
    stage, *rest = path.split("/")
    if len(rest) != (2 if stage == "data" else 4):  # a name with a slash, such as ../../etc
        raise ConfigurationError(f'{where}: "{path}" is no result: a name in it has a "/". Write a plain name.')
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
        where = catalogue.settings_origin("steps", name, model).at("schedule", "onset", "detected_from")
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


def _check_study(catalogue: Catalogue, name: str, study: Study) -> None:
    origin = catalogue.origins["studies", name]
    for key in ("models", "recipes", "attacks", "attacked", "seeds", "benchmarks", "analyses", *_SHOWN):
        listed = getattr(study, key) or ()
        for number, entry in enumerate(listed):
            if entry in listed[:number]:
                raise ConfigurationError(f'{origin.at(key, number)}: "{entry}" stands twice in the list. Keep one.')
    for number, model in enumerate(study.models):
        catalogue.model(model, origin.at("models", number))
    for step in study.trials:
        place = origin.at("trials", step)
        find(catalogue.steps, step, "step", place)
        written = (*study.recipes, *study.attacks)
        if not study.chooses(step) and not any(
            f"{step}{recipes.TRIALS}" in re.split("[+@]", recipe) for recipe in written
        ):
            raise ConfigurationError(
                f'{place}: no recipe of the study has "{step}{recipes.TRIALS}", which stands for these trials, or '
                f'"{step}{recipes.BEST}", which is one of them. Add one, or take this line out.'
            )
    seen = set()
    for number, recipe in enumerate(study.recipes):
        seen.update(_check_recipe(catalogue, study, recipe, origin.at("recipes", number)))
    _check_grid(catalogue, study, origin, seen)
    for number, benchmark in enumerate(study.benchmarks):
        find(catalogue.benchmarks, benchmark, "benchmark", origin.at("benchmarks", number))
    for number, analysis in enumerate(study.analyses):
        find(catalogue.analyses, analysis, "analysis", origin.at("analyses", number))
    for kind in _SHOWN:
        for number, shown in enumerate(getattr(study, kind)):
            entity = find(getattr(catalogue, kind), shown, kind[:-1], origin.at(kind, number))
            check_measured(catalogue, entity, catalogue.where(kind, shown))


def _check_recipe(catalogue: Catalogue, study: Study, recipe: str, place: str) -> list[str]:
    """Whether there are the steps and trials of a recipe of a study; returns what it stands for."""
    recipes.check(recipe, catalogue.steps, place)
    every = recipes.expanded(recipe, study.trials, place)
    for expanded in every:
        for model, step in product(study.models, recipes.steps_of(expanded)):
            name = recipes.snapshot_of(step)[0]
            if name not in catalogue.steps:
                catalogue.step(model, step, place)  # whether there is such a trial, or such a choice
    return every


def _check_grid(catalogue: Catalogue, study: Study, origin: Origin, seen: set[str]) -> None:
    """Whether every attack of a study can follow every recipe that is attacked, and makes something new of it."""
    for number, recipe in enumerate(study.attacked or ()):
        place = origin.at("attacked", number)
        if not study.attacks:
            raise ConfigurationError(f"{place}: the study has no attacks. List some, or take attacked out.")
        find(dict.fromkeys(study.recipes), recipe, "recipe of the study", place)
    for number, attack in enumerate(study.attacks):
        place = origin.at("attacks", number)
        if attack == recipes.BASE:
            raise ConfigurationError(f'{place}: "{attack}" is no attack. Name a step, or several joined by "+".')
        recipes.check(attack, catalogue.steps, place)
        for written in study.under(number):
            for recipe in _check_recipe(catalogue, study, written, place):
                if recipe in seen:
                    raise ConfigurationError(
                        f'{place}: makes "{recipe}", which the study has already. Take it out of one of the lists, '
                        "or list under attacked what is to be attacked."
                    )
                seen.add(recipe)


def check_measured(catalogue: Catalogue, entity: Table | Figure | Claim, where: str) -> None:
    """Whether the study of a table, figure or claim measures what it speaks of. Raises ConfigurationError."""
    if entity.study in catalogue.left_out:
        raise ConfigurationError(
            f'{where}: shows the study "{entity.study}", which `run` leaves out ({", ".join(catalogue.studies)}). Add '
            "it to `run`, or take the entity out of the study that lists it."
        )
    study = find(catalogue.studies, entity.study, "study", where)
    needed = entity.required_benchmarks()
    if entity.lacks_attacks:
        raise ConfigurationError(
            f"{where}: `attacks: study` stands for the attacks of studies.{entity.study}, which has none. List some "
            "there, or in their place here."
        )
    if not study.models:
        raise ConfigurationError(f"{where}: studies.{entity.study}.models is empty, so there is nothing to show.")
    for kind, key, names, listed in (
        ("benchmark", "benchmarks", [name for name in needed if name not in catalogue.analyses], study.benchmarks),
        ("analysis", "analyses", [name for name in needed if name in catalogue.analyses], study.analyses),
        ("recipe", "recipes", entity.recipes(), study.every_recipe),
    ):
        for name in names:
            if not any(stands_for(name, one) for one in listed):
                raise ConfigurationError(
                    f'{where}: needs the {kind} "{name}", which studies.{entity.study}.{key} does not list '
                    f"({', '.join(getattr(study, key))}){_attacked(study) if key == 'recipes' else ''}. Add it to the "
                    "list, or take the entity out of the study."
                )
    if not set(entity.benchmarks()) & {*study.benchmarks, *study.analyses}:
        raise ConfigurationError(f"{where}: studies.{entity.study} measures nothing of what it shows.")
    for analysis in set(entity.benchmarks()) & set(catalogue.analyses):
        for model in study.models:
            for recipe in those_named(entity.trained(), study.every_recipe):
                catalogue.analysis(model, recipe, analysis, where)


def _attacked(study: Study) -> str:
    """What else than its recipes a study lists, in words."""
    return f" and its attacks ({', '.join(study.attacks)}) do not make" if study.attacks else ""
