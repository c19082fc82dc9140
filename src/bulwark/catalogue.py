"""The catalogue: every entity of the configuration, joined with the code it names, and checked before any job.

An entity is a file `config/<folder>/<name>.yaml`; a section of the same name in the configuration (an overlay)
lays changes over it or adds entities. A variant says `like: <name>` and then only what is different. Wherever a model
needs other settings than most, the step's or benchmark's own file says so under `models: {<model>: …}`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bulwark import analyses as analysis_modules
from bulwark import benchmarks as benchmark_modules
from bulwark import recipes, steps
from bulwark.digests import code_digest, step_digest, world_digest
from bulwark.entities import Analysis, Benchmark, Dataset, Model, Projection, Resources, Step, Study, Trait
from bulwark.errors import ConfigurationError, nearest
from bulwark.judges import JudgeSettings
from bulwark.miniature import records as miniature_records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.prompts import TEMPLATES
from bulwark.records import SCHEMAS
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, completed, merged, read_yaml, validated
from bulwark.steering import projections
from bulwark.steering.projections import ProjectionSettings
from bulwark.traits import KIND as CONTRAST

__all__ = [
    "Catalogue",
    "code_digest",
    "find",
    "load",
    "refuse_target",
    "step_digest",
    "world_digest",
]

_FOLDERS: dict[str, type[Closed]] = {
    "models": Model,
    "datasets": Dataset,
    "steps": Step,
    "benchmarks": Benchmark,
    "analyses": Analysis,
    "traits": Trait,
    "projections": Projection,
    "tables": Table,
    "figures": Figure,
    "claims": Claim,
}
Entity = TypeVar("Entity", bound=Closed)


@dataclass(frozen=True)
class ResolvedStep:
    """A step as it is applied to one model: all defaults filled in."""

    kind: str
    settings: Closed
    cost: float


@dataclass(frozen=True)
class ResolvedBenchmark:
    """A benchmark as it is run on one model: all defaults filled in."""

    module: str
    dataset: str
    split: str
    settings: Closed
    cost: float


@dataclass(frozen=True)
class ResolvedProjection:
    """A projection as it is made on one model: all defaults filled in."""

    dataset: str
    split: str
    settings: ProjectionSettings
    cost: float


@dataclass(frozen=True)
class Catalogue:
    """Every entity by name. Look-ups of unknown names raise ConfigurationError with the nearest valid name."""

    models: dict[str, Model]
    datasets: dict[str, Dataset]
    steps: dict[str, Step]
    benchmarks: dict[str, Benchmark]
    analyses: dict[str, Analysis]
    traits: dict[str, Trait]
    projections: dict[str, Projection]
    tables: dict[str, Table]
    figures: dict[str, Figure]
    claims: dict[str, Claim]
    studies: dict[str, Study]

    def model(self, name: str, where: str = "") -> Model:
        return find(self.models, name, "model", where)

    def dataset(self, name: str, where: str = "") -> Dataset:
        return find(self.datasets, name, "dataset", where)

    def step(self, model: str | None, name: str, where: str = "") -> ResolvedStep:
        """Return the step `name` as it is applied to `model`, or to a model that it has no word on (None)."""
        if model is not None:
            self.model(model, where)
        step = find(self.steps, name, "step", where)
        special = step.models.get(model)
        settings = merged(step.settings, special.settings) if special else step.settings
        origin = f"config/steps/{name}.yaml, settings" + (f" with models.{model}.settings" if special else "")
        cost = special.cost if special and special.cost else step.cost
        module = _module(steps.__name__, step.kind, "kind of step", f"config/steps/{name}.yaml: kind")
        return ResolvedStep(step.kind, validated(module.Settings, settings, origin), cost)

    def benchmark(self, model: str | None, name: str, where: str = "") -> ResolvedBenchmark:
        """Return the benchmark `name` as it is run on `model`, or on a model that it has no word on (None)."""
        if model is not None:
            self.model(model, where)
        entity = find(self.benchmarks, name, "benchmark", where)
        special = entity.models.get(model)
        settings = merged(entity.settings, special.settings) if special else entity.settings
        origin = f"config/benchmarks/{name}.yaml, settings" + (f" with models.{model}.settings" if special else "")
        module = _module(
            benchmark_modules.__name__, entity.module, "benchmark module", f"config/benchmarks/{name}.yaml: module"
        )
        return ResolvedBenchmark(
            entity.module,
            (special and special.dataset) or entity.dataset,
            (special and special.split) or entity.split,
            validated(module.Settings, settings, origin),
            (special and special.cost) or entity.cost,
        )

    def analysis(self, model: str, recipe: str, name: str, where: str = "") -> Analysis:
        """Return the analysis `name`. Raises ConfigurationError if the recipe's last step leaves nothing for it."""
        entity = find(self.analyses, name, "analysis", where)
        if not self.analysed(model, recipe, name):
            raise ConfigurationError(
                f'{where}: the last step of "{recipe}" leaves nothing behind for the analysis "{name}" on {model}. Set '
                "`analysis` in the step's settings, or take the recipe out of the rows of what shows the analysis."
            )
        return entity

    def analysed(self, model: str, recipe: str, name: str) -> bool:
        """Whether the last step of `recipe` leaves behind what the analysis `name` reads."""
        module = find(self.analyses, name, "analysis").module
        last = None if recipe == recipes.BASE else self.step(model, recipes.last_step(recipe)).settings
        return analysis_modules.applies(module, last)

    def trait(self, name: str, where: str = "") -> Trait:
        return find(self.traits, name, "trait", where)

    def judge_of_trait(self, name: str) -> JudgeSettings | None:
        """The judge that scores the answers a trait is extracted from, with all defaults filled in; None for none."""
        given = self.trait(name).judge
        return None if given is None else validated(JudgeSettings, given, f"config/traits/{name}.yaml: judge")

    def projection(self, model: str | None, name: str, where: str = "") -> ResolvedProjection:
        """Return the projection `name` as it is made on `model`, or on a model that it has no word on (None)."""
        if model is not None:
            self.model(model, where)
        entity = find(self.projections, name, "projection", where)
        special = entity.models.get(model)
        settings = merged(entity.settings, special.settings) if special else entity.settings
        origin = f"config/projections/{name}.yaml, settings" + (f" with models.{model}.settings" if special else "")
        return ResolvedProjection(
            (special and special.dataset) or entity.dataset,
            (special and special.split) or entity.split,
            validated(ProjectionSettings, settings, origin),
            (special and special.cost) or entity.cost,
        )

    def resources(self, model: str, stage: str) -> Resources:
        """What a job of `stage` needs on `model`."""
        needed = getattr(self.model(model).resources, stage)
        if needed is None:
            raise ConfigurationError(f'config/models/{model}.yaml: resources does not say what "{stage}" needs.')
        return needed

    def seeds(self, recipe: str, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds at which a recipe is measured: the base model has no training of ours, so one is enough."""
        return seeds[:1] if recipe == recipes.BASE else seeds

    def cells(self, study: str) -> list[tuple[str, str, int, str]]:
        """Every (model, recipe, seed, benchmark) that a study measures."""
        asked = find(self.studies, study, "study", "")
        return [
            (model, recipe, seed, benchmark)
            for model in asked.models
            for recipe in asked.recipes
            for seed in self.seeds(recipe, asked.seeds)
            for benchmark in asked.benchmarks
        ]

    def analysis_cells(self, study: str) -> list[tuple[str, str, int, str]]:
        """Every (model, recipe, seed, analysis) of a study: of the recipes whose last step can be analysed."""
        asked = find(self.studies, study, "study", "")
        return [
            (model, recipe, seed, analysis)
            for model in asked.models
            for recipe in asked.recipes
            for analysis in asked.analyses
            if self.analysed(model, recipe, analysis)
            for seed in self.seeds(recipe, asked.seeds)
        ]

    def check(self) -> None:
        """Check every name and every setting. Raises ConfigurationError for the first wrong one."""
        for name, model in self.models.items():
            self._check_model(name, model)
        for name, dataset in self.datasets.items():
            self._check_dataset(name, dataset)
        for name, trait in self.traits.items():
            self._check_trait(name, trait)
        for kind, entities in (
            ("steps", self.steps),
            ("benchmarks", self.benchmarks),
            ("projections", self.projections),
        ):
            for name, entity in entities.items():
                for model in entity.models:
                    self.model(model, f"config/{kind}/{name}.yaml: models")
        for name in self.steps:
            for model in [None, *self.models]:
                settings, where = self.step(model, name).settings, f"config/steps/{name}.yaml: settings"
                for path in settings.inputs().values():
                    self._check_input(path, where)
                    self._check_compared(path, model, settings, (getattr(settings, "data", None), "train"), where)
        for name in self.benchmarks:
            for model in [None, *self.models]:
                benchmark = self.benchmark(model, name)
                self.dataset(benchmark.dataset, f"config/benchmarks/{name}.yaml: dataset")
                benchmark_modules.judge_of(benchmark.module, benchmark.settings, f"config/benchmarks/{name}.yaml")
                for path in benchmark_modules.inputs_of(benchmark.settings).values():
                    where = f"config/benchmarks/{name}.yaml: settings"
                    self._check_input(path, where)
                    self._check_compared(path, model, benchmark.settings, (benchmark.dataset, benchmark.split), where)
        for name, analysis in self.analyses.items():
            self._check_analysis(name, analysis)
        for name in self.projections:
            for model in [None, *self.models]:
                projected, where = self.projection(model, name), f"config/projections/{name}.yaml"
                self._check_input(f"data/{projected.dataset}/{projected.split}.jsonl", f"{where}: dataset")
                for path in projected.settings.inputs().values():
                    self._check_input(path, f"{where}: settings")
        for name, study in self.studies.items():
            self._check_study(f"studies.{name}", study)
        for kind, entities in (("tables", self.tables), ("figures", self.figures), ("claims", self.claims)):
            for name, entity in entities.items():
                where = f"config/{kind}/{name}.yaml"
                for benchmark, metric in entity.metrics():
                    find(self._metrics_of(benchmark, where), metric, f"metric of {benchmark}", where)
                for recipe in entity.recipes():
                    recipes.check(recipe, self.steps, where)

    def _metrics_of(self, name: str, where: str) -> Mapping[str, bool | None]:
        """The metrics of a benchmark or, under the same key, of an analysis."""
        if name in self.analyses:
            return analysis_modules.module_of(self.analyses[name].module).METRICS
        return benchmark_modules.module_of(find(self.benchmarks, name, "benchmark", where).module).METRICS

    def _check_analysis(self, name: str, analysis: Analysis) -> None:
        where = f"config/analyses/{name}.yaml"
        module = _module(analysis_modules.__name__, analysis.module, "analysis module", f"{where}: module")
        validated(module.Settings, analysis.settings, f"{where}, settings")
        if name in self.benchmarks:
            raise ConfigurationError(f'{where}: a benchmark is called "{name}" as well; no table could tell which.')

    def _check_model(self, name: str, model: Model) -> None:
        where = f"config/models/{name}.yaml"
        find(TEMPLATES, model.template, "prompt template", where)
        if model.source.miniature is not None:
            validated(MiniatureSettings, model.source.miniature, f"{where}, source.miniature")
            find(self.datasets, model.source.data, "dataset", f"{where}, source.data")
            self.resources(name, "pretrain")

    def _check_dataset(self, name: str, dataset: Dataset) -> None:
        where = f"config/datasets/{name}.yaml"
        if dataset.kind not in (*SCHEMAS, CONTRAST):
            _module(benchmark_modules.__name__, dataset.kind, "kind of records", f"{where}: kind")
        if dataset.source.miniature is not None:
            self.model(dataset.source.world, f"{where}: source.world")
            known = miniature_records.splits(dataset.source.miniature)
            for split, wanted in dataset.splits.items():
                source_split = wanted if isinstance(wanted, str) else split
                find(dict.fromkeys(known), source_split, "split of the miniature's data set", f"{where}: splits")

    def _check_trait(self, name: str, trait: Trait) -> None:
        where = f"config/traits/{name}.yaml"
        self.judge_of_trait(name)
        for model in trait.files:
            self.model(model, f"{where}: files")
        if trait.dataset is not None:
            dataset = self.dataset(trait.dataset, f"{where}: dataset")
            find(dataset.splits, trait.split, f'split of the dataset "{trait.dataset}"', f"{where}: split")
            if dataset.kind != CONTRAST:
                raise ConfigurationError(
                    f'{where}: the dataset "{trait.dataset}" holds records of the kind "{dataset.kind}"; a trait is '
                    f'extracted from one of the kind "{CONTRAST}".'
                )

    def _check_input(self, path: str, where: str) -> None:
        """Whether a file that a step or benchmark asks for can be made, as far as its path names a data set."""
        stage, *rest = path.split("/")
        if stage == "data":
            dataset, file = rest
            splits = self.dataset(dataset, where).splits
            find(splits, file.removesuffix(".jsonl"), f'split of the dataset "{dataset}"', where)
        if stage == "checkpoints":
            find(self.steps, rest[1].removeprefix("{prefix}"), "step", where)
        if stage == "vectors":
            self.trait(Path(rest[-1]).stem, where)
        if stage == "projections":
            find(self.projections, Path(rest[-1]).stem, "projection", where)

    def _check_compared(self, path: str, model: str | None, settings: Closed, records: Any, where: str) -> None:
        """Whether the projections that a step or benchmark compares itself with are of its own records and vectors."""
        if path.startswith("projections/"):
            name = Path(path).stem
            there = self.projection(model, name, where)
            projections.refuse_others(
                name, (records, settings.vectors), ((there.dataset, there.split), there.settings.vectors), where
            )

    def _check_study(self, where: str, study: Study) -> None:
        for model in study.models:
            self.model(model, f"{where}.models")
        for recipe in study.recipes:
            recipes.check(recipe, self.steps, f"{where}.recipes")
        for benchmark in study.benchmarks:
            find(self.benchmarks, benchmark, "benchmark", f"{where}.benchmarks")
        for analysis in study.analyses:
            find(self.analyses, analysis, "analysis", f"{where}.analyses")
        for kind in ("tables", "figures", "claims"):
            for name in getattr(study, kind):
                entity = find(getattr(self, kind), name, kind[:-1], f"{where}.{kind}")
                self.check_measured(entity, f"config/{kind}/{name}.yaml")

    def check_measured(self, entity: Table | Figure | Claim, where: str) -> None:
        """Whether the study of a table, figure or claim measures what it speaks of. Raises ConfigurationError."""
        study = find(self.studies, entity.study, "study", where)
        needed = entity.required_benchmarks()
        if not study.models:
            raise ConfigurationError(f"{where}: studies.{entity.study}.models is empty, so there is nothing to show.")
        for kind, key, names, listed in (
            ("benchmark", "benchmarks", [name for name in needed if name not in self.analyses], study.benchmarks),
            ("analysis", "analyses", [name for name in needed if name in self.analyses], study.analyses),
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
        for analysis in set(entity.benchmarks()) & set(self.analyses):
            for model in study.models:
                for recipe in entity.recipes() or study.recipes:
                    self.analysis(model, recipe, analysis, where)


def load(config: Mapping[str, Any], folder: Path) -> Catalogue:
    """Join the entity files under `folder` with the sections of `config`, and check the whole.

    Raises ConfigurationError that names file or section, key and the nearest valid name.
    """
    sections = {*_FOLDERS, "studies"}
    for key in config:
        if key not in sections:
            raise ConfigurationError(f'The configuration has the unknown section "{key}".{nearest(key, sections)}')
    entities: dict[str, dict[str, Any]] = {}
    for section, cls in _FOLDERS.items():
        maps = {path.stem: read_yaml(path) for path in sorted((folder / section).glob("*.yaml"))}
        over = _map(config.get(section) or {}, section)
        for name, changes in over.items():
            maps[name] = merged(maps.get(name, {}), _map(changes, f"{section}.{name}"))
        maps = {name: completed(name, maps, f"config/{section}") for name in maps}
        entities[section] = {
            name: _entity(cls, data, name, folder / section, section, over) for name, data in maps.items()
        }
    studies = {
        name: validated(Study, data, f"studies.{name}")
        for name, data in _map(config.get("studies") or {}, "studies").items()
    }
    catalogue = Catalogue(**entities, studies=studies)
    catalogue.check()
    published = {path.stem: path for path in (folder / "published").glob("*.yaml")}
    for section in ("tables", "figures"):
        for name, entity in entities[section].items():
            if entity.published is not None:
                find(published, entity.published, "file of config/published", f"config/{section}/{name}.yaml")
    return catalogue


def find(entities: Mapping[str, Entity], name: str, kind: str, where: str = "") -> Entity:
    """Look up an entity. Raises ConfigurationError that says where the name stood and what is nearest to it."""
    if name not in entities:
        place = f"{where}: " if where else ""
        raise ConfigurationError(f'{place}there is no {kind} "{name}".{nearest(name, entities)}')
    return entities[name]


def refuse_target(catalogue: Catalogue, kind: str, name: str) -> None:
    """Raise ConfigurationError for a target `<kind>_<name>` that does not exist."""
    entities = {"table": catalogue.tables, "figure": catalogue.figures, "paper": catalogue.studies}[kind]
    find(entities, name, {"paper": "study"}.get(kind, kind), f'target "{kind}_{name}"')


def _module(package: str, name: str, kind: str, where: str) -> ModuleType:
    folder = Path(importlib.import_module(package).__file__).parent
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise ConfigurationError(f'{where}: there is no {kind} "{name}".{nearest(name, known)}')
    return importlib.import_module(f"{package}.{name}")


def _map(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f'{where}: expected a map of names, found {type(value).__name__} "{value}".')
    return value


def _entity(cls: type[Closed], data: Any, name: str, folder: Path, section: str, over: Mapping) -> Closed:
    """One entity; if an overlay names one that has no file and is not whole either, the name may be the mistake."""
    try:
        return validated(cls, data, _origin(folder.parent, section, name, over))
    except ConfigurationError as error:
        files = [path.stem for path in folder.glob("*.yaml")]
        if name in files:
            raise
        raise ConfigurationError(
            f"{error}\nThere is no {section}/{name}.yaml to change.{nearest(name, files)}"
        ) from None


def _origin(folder: Path, section: str, name: str, over: Mapping) -> str:
    path = folder / section / f"{name}.yaml"
    file = f"{folder.name}/{section}/{name}.yaml" if path.exists() else ""
    overlay = f"{section}.{name} of the overlay" if name in over else ""
    return " with ".join(part for part in (file, overlay) if part)
