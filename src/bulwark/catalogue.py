"""The catalogue: every entity of the configuration, joined with the code it names, and checked before any job.

An entity is a file `config/<folder>/<name>.yaml`; a section of the same name in the configuration (an overlay)
lays changes over it or adds entities. Wherever a model needs other settings than most, the step's or benchmark's
own file says so under `models: {<model>: …}`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bulwark import benchmarks as benchmark_modules
from bulwark import recipes, steps
from bulwark.entities import Benchmark, Dataset, Model, Resources, Step, Study
from bulwark.errors import ConfigurationError, nearest
from bulwark.miniature import records as miniature_records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.prompts import TEMPLATES
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, merged, read_yaml, validated

_FOLDERS: dict[str, type[Closed]] = {
    "models": Model,
    "datasets": Dataset,
    "steps": Step,
    "benchmarks": Benchmark,
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
class Catalogue:
    """Every entity by name. Look-ups of unknown names raise ConfigurationError with the nearest valid name."""

    models: dict[str, Model]
    datasets: dict[str, Dataset]
    steps: dict[str, Step]
    benchmarks: dict[str, Benchmark]
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

    def check(self) -> None:
        """Check every name and every setting. Raises ConfigurationError for the first wrong one."""
        for name, model in self.models.items():
            self._check_model(name, model)
        for name, dataset in self.datasets.items():
            self._check_dataset(name, dataset)
        for kind, entities in (("steps", self.steps), ("benchmarks", self.benchmarks)):
            for name, entity in entities.items():
                for model in entity.models:
                    self.model(model, f"config/{kind}/{name}.yaml: models")
        for name in self.steps:
            for model in [None, *self.models]:
                for path in self.step(model, name).settings.inputs().values():
                    self._check_input(path, f"config/steps/{name}.yaml: settings")
        for name in self.benchmarks:
            for model in [None, *self.models]:
                self.dataset(self.benchmark(model, name).dataset, f"config/benchmarks/{name}.yaml: dataset")
        for name, study in self.studies.items():
            self._check_study(f"studies.{name}", study)
        for kind, entities in (("tables", self.tables), ("figures", self.figures), ("claims", self.claims)):
            for name, entity in entities.items():
                where = f"config/{kind}/{name}.yaml"
                for benchmark, metric in entity.metrics():
                    module = benchmark_modules.module_of(find(self.benchmarks, benchmark, "benchmark", where).module)
                    find(module.METRICS, metric, f"metric of {benchmark}", where)
                for recipe in entity.recipes():
                    recipes.check(recipe, self.steps, where)

    def _check_model(self, name: str, model: Model) -> None:
        where = f"config/models/{name}.yaml"
        find(TEMPLATES, model.template, "prompt template", where)
        if model.source.miniature is not None:
            validated(MiniatureSettings, model.source.miniature, f"{where}, source.miniature")
            find(self.datasets, model.source.data, "dataset", f"{where}, source.data")
            self.resources(name, "pretrain")

    def _check_dataset(self, name: str, dataset: Dataset) -> None:
        where = f"config/datasets/{name}.yaml"
        if dataset.kind != "conversation":
            _module(benchmark_modules.__name__, dataset.kind, "kind of records", f"{where}: kind")
        if dataset.source.miniature is not None:
            self.model(dataset.source.world, f"{where}: source.world")
            known = miniature_records.splits(dataset.source.miniature)
            for split, wanted in dataset.splits.items():
                source_split = wanted if isinstance(wanted, str) else split
                find(dict.fromkeys(known), source_split, "split of the miniature's data set", f"{where}: splits")

    def _check_input(self, path: str, where: str) -> None:
        """Whether a file that a step asks for can be made, as far as its path names a data set."""
        stage, *rest = path.split("/")
        if stage == "data":
            dataset, file = rest
            splits = self.dataset(dataset, where).splits
            find(splits, file.removesuffix(".jsonl"), f'split of the dataset "{dataset}"', where)

    def _check_study(self, where: str, study: Study) -> None:
        for model in study.models:
            self.model(model, f"{where}.models")
        for recipe in study.recipes:
            recipes.check(recipe, self.steps, f"{where}.recipes")
        for benchmark in study.benchmarks:
            find(self.benchmarks, benchmark, "benchmark", f"{where}.benchmarks")
        for kind in ("tables", "figures", "claims"):
            for name in getattr(study, kind):
                entity = find(getattr(self, kind), name, kind[:-1], f"{where}.{kind}")
                _check_measured(entity, f"config/{kind}/{name}.yaml", find(self.studies, entity.study, "study", where))


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


def code_digest(module: str, *roots: str) -> str:
    """A digest of what the code of `module` does: comments, docstrings and layout do not change it.

    With `roots`, only of these top-level definitions and those of the module that they use. The workflow tracks it as
    a parameter, so that editing a step's method redoes that step and its descendants while rewording a comment
    redoes nothing.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"There is no module {module}.")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]
    if roots:
        tree.body = _reachable(tree, roots)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _check_measured(entity: Table | Figure | Claim, where: str, study: Study) -> None:
    """Whether a study measures what a table, figure or claim over it speaks of."""
    for kind, needed, listed in (
        ("benchmark", entity.required_benchmarks(), study.benchmarks),
        ("recipe", entity.recipes(), study.recipes),
    ):
        for name in needed:
            if name not in listed:
                raise ConfigurationError(
                    f'{where}: needs the {kind} "{name}", which studies.{entity.study}.{kind}s does not list '
                    f"({', '.join(listed)}). Add it to the list, or take the entity out of the study."
                )


def step_digest(kind: str) -> str:
    """A digest of the code that makes a kind of step what it is: its module, and those that its `METHOD` names."""
    modules = (f"{steps.__name__}.{kind}", *getattr(steps.module_of(kind), "METHOD", ()))
    return "-".join(code_digest(module) for module in modules)


def world_digest() -> str:
    """A digest of the code that makes the miniature's records, tokenizer and model."""
    folder = Path(miniature_records.__file__).parent
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    digests = (code_digest(f"bulwark.miniature.{name}") for name in names)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _reachable(tree: ast.Module, roots: tuple[str, ...]) -> list[ast.stmt]:
    """The top-level statements that define `roots`, or a name that one of these statements uses, in their order."""
    definitions: dict[str, ast.stmt] = {}
    for statement in tree.body:
        for node in ast.walk(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                definitions[node.id] = statement
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            definitions[statement.name] = statement
        if isinstance(statement, ast.Import | ast.ImportFrom):
            definitions |= {(alias.asname or alias.name): statement for alias in statement.names}
    found: list[ast.stmt] = []
    names = list(roots)
    while names:
        statement = definitions.get(names.pop())
        if statement is not None and statement not in found:
            found.append(statement)
            names += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return sorted(found, key=lambda statement: statement.lineno)


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
