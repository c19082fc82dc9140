"""The catalogue: every entity of the configuration, joined with the code it names, and checked before any job.

An entity is a file `config/<folder>/<name>.yaml`; a section of the same name in the configuration (an overlay)
lays changes over it or adds entities. A variant says `like: <name>` and then only what is different. Wherever a model
needs other settings than most, the step's or benchmark's own file says so under `models: {<model>: …}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulwark import analyses as analysis_modules
from bulwark import benchmarks as benchmark_modules
from bulwark import steps
from bulwark.config import checks, recipes
from bulwark.config.entities import (
    Analysis,
    Benchmark,
    Dataset,
    Model,
    Projection,
    Resources,
    Step,
    Study,
    Trait,
    find,
    module_named,
)
from bulwark.errors import ConfigurationError, nearest
from bulwark.judges import JudgeSettings
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, completed, merged, read_yaml, validated
from bulwark.steering.vectors.projections import ProjectionSettings

__all__ = [
    "Catalogue",
    "find",
    "load",
    "refuse_target",
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


@dataclass(frozen=True)
class ResolvedStep:
    """A step as it is applied to one model: all defaults filled in. stage: whose resources of the model it takes."""

    kind: str
    settings: Closed
    cost: float
    stage: str


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
        module = module_named(steps.__name__, step.kind, "kind of step", f"config/steps/{name}.yaml: kind")
        stage = getattr(module, "STAGE", "train")
        return ResolvedStep(step.kind, validated(module.Settings, settings, origin), cost, stage)

    def benchmark(self, model: str | None, name: str, where: str = "") -> ResolvedBenchmark:
        """Return the benchmark `name` as it is run on `model`, or on a model that it has no word on (None)."""
        if model is not None:
            self.model(model, where)
        entity = find(self.benchmarks, name, "benchmark", where)
        special = entity.models.get(model)
        settings = merged(entity.settings, special.settings) if special else entity.settings
        origin = f"config/benchmarks/{name}.yaml, settings" + (f" with models.{model}.settings" if special else "")
        module = module_named(
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
        whole = {name: completed(name, maps, f"config/{section}") for name in maps}
        # What others are like comes before them, so that a mistake in it is not told of them.
        maps = {name: whole[name] for name in sorted(maps, key=lambda name: _generation(name, maps))}
        entities[section] = {
            name: _entity(cls, data, name, folder / section, section, over) for name, data in maps.items()
        }
    studies = {
        name: validated(Study, data, f"studies.{name}")
        for name, data in _map(config.get("studies") or {}, "studies").items()
    }
    catalogue = Catalogue(**entities, studies=studies)
    checks.check(catalogue)
    published = {path.stem: path for path in (folder / "published").glob("*.yaml")}
    for section in ("tables", "figures"):
        for name, entity in entities[section].items():
            if entity.published is not None:
                find(published, entity.published, "file of config/published", f"config/{section}/{name}.yaml")
    return catalogue


def refuse_target(catalogue: Catalogue, kind: str, name: str) -> None:
    """Raise ConfigurationError for a target `<kind>_<name>` that does not exist."""
    entities = {"table": catalogue.tables, "figure": catalogue.figures, "paper": catalogue.studies}[kind]
    find(entities, name, {"paper": "study"}.get(kind, kind), f'target "{kind}_{name}"')


def _generation(name: str, maps: Mapping[str, Mapping[str, Any]]) -> int:
    """How many entities stand between `name` and one that is like no other."""
    other = maps[name].get("like")
    return 0 if other is None else 1 + _generation(other, maps)


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
