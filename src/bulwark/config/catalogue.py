"""The catalogue: every entity of the configuration by name, and what each is on one model.

An entity is a file `config/<folder>/<name>.yaml`; a section of the same name in the configuration (an overlay)
lays changes over it or adds entities. A variant says `like: <name>` and then only what is different. Wherever a model
needs other settings than most, the step's or benchmark's own file says so under `models: {<model>: …}`; an overlay's
value beats both.
`bulwark.config.loading.load` reads all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bulwark import analyses as analysis_modules
from bulwark import benchmarks as benchmark_modules
from bulwark import steps
from bulwark.config import recipes
from bulwark.config.costs import accelerators
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
)
from bulwark.config.overlays import Origin
from bulwark.config.space import ranges
from bulwark.errors import ConfigurationError
from bulwark.judges import JudgeSettings
from bulwark.prompts.asking import Asking, asked_in
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, Where, find, merged, module_named, validated
from bulwark.steering.vectors.projections import ProjectionSettings
from bulwark.training.finetuning import FineTuningSettings

Section = Literal["steps", "benchmarks", "projections"]
# What a validation loss is of: losses of trials that differ in these cannot be compared.
_OF_VALIDATION = ("data", "template", "training.loss_on", "training.max_tokens")


@dataclass(frozen=True, eq=False)
class Resolved:
    """A step, benchmark or projection as it is on one model: all defaults filled in.

    module: the name of its module (a step's kind). dataset, split: empty for a step. stage: whose resources of the
    model a job of it takes. cost: of the job, as a multiple of that stage. space: of a step, by settings key. trial: in
    what a trial differs from the step, by settings key; empty for what is none.
    """

    module: str
    settings: Closed
    cost: float
    dataset: str = ""
    split: str = ""
    stage: str = "generate"
    space: Mapping[str, ranges.Range] = field(default_factory=dict)
    trial: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The files under results/ that a job reads beside checkpoint and records, as path templates by name."""
        return self.settings.inputs()

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The settings as plain data. Do not change it: everyone gets the same."""
        return self.settings.model_dump(mode="json")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Every entity by name. Look-ups of unknown names raise ConfigurationError with the nearest valid name.

    folder: where the entity files are. name: of the configuration, under which its reports are kept. origins: in which
    files and lines each entity and study stands. studies: those that are run; left_out: the others' names. accelerator:
    which GPUs jobs get. partial: whether tables show what has not been made as missing. command: that makes a file.
    """

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
    folder: Path
    name: str
    origins: dict[tuple[str, str], Origin]
    accelerator: str = accelerators.DEFAULT
    partial: bool = False
    command: str = "snakemake -c2 --"
    left_out: tuple[str, ...] = ()
    _resolved: dict[tuple[Section, str | None, str, int | None, Asking | None], Resolved] = field(
        default_factory=dict, repr=False
    )

    def where(self, section: str, name: str, *keys: str) -> str:
        """File, line and path of a key of an entity or study, for messages; those of a trial are its step's."""
        return self.origins[section, _entity_name(section, name)].at(*keys)

    def settings_origin(self, section: str, name: str, model: str | None) -> Origin:
        """Where the settings of a step, benchmark or projection come from, as they are on `model`."""
        name = _entity_name(section, name)
        entity = getattr(self, section)[name]
        return self.origins[section, name].settings(model if model in entity.models else None)

    def model(self, name: str, where: str = "") -> Model:
        return find(self.models, name, "model", where)

    def dataset(self, name: str, where: str = "") -> Dataset:
        return find(self.datasets, name, "dataset", where)

    def trait(self, name: str, where: str = "") -> Trait:
        return find(self.traits, name, "trait", where)

    def step(self, model: str | None, name: str, where: str = "") -> Resolved:
        """Return the step `name` as it is applied to `model`, or to a model that it does not mention (None)."""
        return self.resolve("steps", model, name, where)

    def benchmark(self, model: str | None, name: str, where: str = "") -> Resolved:
        """Return the benchmark `name` as it is run on `model`, or on a model that it does not mention (None)."""
        return self.resolve("benchmarks", model, name, where)

    def projection(self, model: str | None, name: str, where: str = "") -> Resolved:
        """Return the projection `name` as it is made on `model`, or on a model that it does not mention (None)."""
        return self.resolve("projections", model, name, where)

    def resolve(self, section: Section, model: str | None, name: str, where: str = "") -> Resolved:
        """Return an entity of a section as it is on `model`; resolved once, since every job of a plan asks for it.

        A step may be meant before its end, "sft@40", or be a trial, "relearn.3"; "aside.best", which is one of its
        trials, has the settings of "aside".
        Raises ConfigurationError for unknown names, with `where` they stood, for settings that are not valid, for a
        snapshot that the training does not keep, for a trial of a step without a space, and for the best of trials that
        cannot be compared.
        """
        asking = None if model is None else self.model(model, where).asking
        name, at = recipes.snapshot_of(name)
        if at is not None:
            self._check_snapshot(model, name, at, where)
        if section == "steps" and recipes.best_of(name):
            self.trials_to_choose(model, name, where)
            name = recipes.entity_of(name)
        name, number = recipes.trial_of(name) if section == "steps" else (name, None)
        entity = find(getattr(self, section), name, section[:-1], where)
        key = (section, model if model in entity.models else None, name, number, asking)
        if key not in self._resolved:
            values = {} if number is None else self._trial(key[1], name, number, where)
            self._resolved[key] = _resolved(entity, key[1], self.origins[section, name], values, asking)
        return self._resolved[key]

    def varied(self, model: str | None, name: str, values: Mapping[str, Any]) -> Resolved:
        """A step as it is on `model` with other values of its space, by settings key."""
        entity = find(self.steps, name, "step")
        own, asking = model if model in entity.models else None, model and self.model(model).asking
        return _resolved(entity, own, self.origins["steps", name], values, asking)

    def _trial(self, model: str | None, name: str, number: int, where: str) -> dict[str, Any]:
        step = self.steps[name]
        space = step.space_on(model)
        if not space:
            raise self._no_space(model, f'"{name}.{number}" is trial {number} of the step "{name}"', name, where)
        if step.grid and number >= (count := ranges.grid_size(space)):
            raise ConfigurationError(
                f'{where}: there is no "{name}.{number}": the grid of "{name}"{_on(model)} has {count} trials, '
                f'"{name}.0" to "{name}.{count - 1}".'
            )
        return ranges.trial(name, number, space, grid=step.grid)

    def _no_space(self, model: str | None, what: str, name: str, where: str) -> ConfigurationError:
        return ConfigurationError(
            f"{where}: {what}, which has no space{_on(model)}. Say under space at {self.where('steps', name)} which "
            "settings its trials vary."
        )

    def trials_to_choose(self, model: str | None, best: str, where: str = "") -> tuple[str, ...]:
        """The trials among which "aside.best" is the one with the lowest validation loss: "aside.0", "aside.1", …

        As many as a study says under `trials` that lists it for the model; where none says so, all of a grid.
        Raises ConfigurationError where there are no such trials or losses, or they cannot be compared.
        """
        name = recipes.entity_of(best)
        step = find(self.steps, name, "step", where)
        own = model if model in step.models else None
        what = f'"{name}{recipes.BEST}" is the best trial of "{name}"'
        space = step.space_on(own)
        if not space:
            raise self._no_space(model, what, name, where)
        settings = self.step(model, name, where).settings
        if not isinstance(settings, FineTuningSettings) or "validation" not in settings.inputs():
            raise ConfigurationError(
                f"{where}: {what} by its validation loss, and the step has none. Name a step that trains on a data set "
                "with a split for validation."
            )
        if moved := [key for key in space if any(f"{of}.".startswith(f"{key}.") for of in _OF_VALIDATION)]:
            raise ConfigurationError(
                f"{where}: {what} by its validation loss, but its trials vary {moved[0]}, so that their losses are not "
                f"of the same tokens. Take it out of the space at {self.where('steps', name)}, or choose by scores."
            )
        said = {study.trials[name] for study in self.studies.values() if study.chooses(name) and model in study.models}
        if len(said) > 1:
            raise ConfigurationError(
                f"{where}: {what}, and studies name {' and '.join(map(str, sorted(said)))} trials of it for {model}. "
                "Give all of them the same number under trials."
            )
        if not said and not step.grid:
            raise ConfigurationError(
                f"{where}: {what}, and nobody says of how many. Write trials: {{{name}: 16}} in a study that lists "
                f'"{name}{recipes.BEST}", say.'
            )
        size = ranges.grid_size(space) if step.grid else 0
        count = said.pop() if said else size
        if step.grid and count > size:
            raise ConfigurationError(
                f"{where}: {what}, of which a study names {count}{_on(model)}; its grid has {size}. Lower the number "
                "under trials, or leave it out."
            )
        return tuple(f"{name}.{number}" for number in range(count))

    def _check_snapshot(self, model: str | None, name: str, at: int, where: str) -> None:
        training = getattr(self.step(model, name, where).settings, "training", None)
        kept = training.snapshots if training is not None else ()
        if at in kept:
            return
        what = f'{where}: the step "{name}"' + (f" on {model}" if model else "")
        if training is None:
            raise ConfigurationError(f"{what} trains nothing, so that it has no snapshots.")
        near = min(kept, key=lambda step: abs(step - at), default=None)
        known = f"it keeps {', '.join(map(str, kept))}" if kept else "it keeps none"
        raise ConfigurationError(
            f"{what} keeps no snapshot after {at} optimizer steps; {known}."
            + (f' Did you mean "{name}@{near}"?' if near else "")
            + f" Or add {at} to settings.training.snapshots at {self.where('steps', name)}, and it is trained again."
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
        name = None if recipe == recipes.BASE else recipes.last_step(recipe)
        if name and recipes.snapshot_of(name)[1] is not None:
            return False  # what a training writes down is beside its end
        last = None if name is None else self.step(model, name).settings
        return analysis_modules.applies(module, last)

    def judge_of_trait(self, name: str) -> JudgeSettings | None:
        """The judge that scores the answers a trait is extracted from, with all defaults filled in; None for none."""
        given = self.trait(name).judge
        return None if given is None else validated(JudgeSettings, given, self.origins["traits", name].below("judge"))

    def resources(self, model: str, stage: str) -> Resources:
        """What a job of `stage` needs on `model`."""
        needed = getattr(self.model(model).resources, stage)
        if needed is None:
            place = self.where("models", model, "resources")
            raise ConfigurationError(f'{place}: it does not say what "{stage}" needs.')
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
            for recipe in asked.every_recipe
            for seed in self.seeds(recipe, asked.seeds)
            for benchmark in asked.benchmarks
        ]

    def analysis_cells(self, study: str) -> list[tuple[str, str, int, str]]:
        """Every (model, recipe, seed, analysis) of a study: of the recipes whose last step can be analysed."""
        asked = find(self.studies, study, "study", "")
        return [
            (model, recipe, seed, analysis)
            for model in asked.models
            for recipe in asked.every_recipe
            for analysis in asked.analyses
            if self.analysed(model, recipe, analysis)
            for seed in self.seeds(recipe, asked.seeds)
        ]


def _entity_name(section: str, name: str) -> str:
    return recipes.entity_of(name) if section == "steps" else name


def _on(model: str | None) -> str:
    return f" on {model}" if model else ""


def _resolved(
    entity: Any, model: str | None, origin: Origin, values: Mapping[str, Any], asking: Asking | None
) -> Resolved:
    """An entity as it is on `model`, of which it says something of its own, or on any other (None).

    values: of the settings of a trial that its step's space varies, by key. asking: the model's.
    """
    special = entity.models[model] if model is not None else None
    settings = merged(entity.settings, special.settings) if special else entity.settings
    settings = ranges.laid_over(settings, values)
    stage, space = "generate", {}
    if isinstance(entity, Step):
        code = module_named(steps.__name__, entity.kind, "kind of step", origin.at("kind"))
        module, cls, stage = entity.kind, code.Settings, steps.stage_of(entity.kind)
        space = entity.space_on(model)
    elif isinstance(entity, Benchmark):
        code = module_named(benchmark_modules.__name__, entity.module, "benchmark module", origin.at("module"))
        module, cls = entity.module, code.Settings
    else:
        module, cls = "", ProjectionSettings
    settings = _asked(settings, cls, asking, origin.settings(model))
    return Resolved(
        module,
        validated(cls, settings, _place(origin, model, values)),
        (special and special.cost) or entity.cost,
        getattr(special, "dataset", None) or getattr(entity, "dataset", ""),
        getattr(special, "split", None) or getattr(entity, "split", ""),
        stage,
        space,
        values,
    )


def _asked(settings: Mapping[str, Any], cls: type[Closed], asking: Asking | None, origin: Origin) -> Mapping[str, Any]:
    """Settings with how the model is asked, where their class holds that.

    Raises ConfigurationError where they say it themselves.
    """
    path = asked_in(cls)
    if path is None:
        return settings
    said: Any = settings
    for part in path:
        said = said.get(part, {}) if isinstance(said, Mapping) else {}
    for key in Asking.model_fields:
        if isinstance(said, Mapping) and key in said:
            raise ConfigurationError(
                f"{origin.at(*path, key)}: how a model is asked belongs to the model, so that attacks, benchmarks and "
                f"tables ask in one way. Write {key} into config/models/, or under models: in an overlay."
            )
    return ranges.laid_over(
        settings, {".".join((*path, key)): value for key, value in (asking or Asking()).model_dump().items()}
    )


def _place(origin: Origin, model: str | None, values: Mapping[str, Any]) -> Where:
    """Where a settings key stands: in the space, if it is one of a trial's `values`; else also with which values."""
    settings, space = origin.settings(model), origin.settings(model, "space")

    def place(keys: Sequence[str | int] = ()) -> str:
        path = ".".join(map(str, keys))
        varied = next((key for key in values if f"{path}.".startswith(f"{key}.")), None)
        if varied is not None:
            return space.at(varied)
        return f"{settings(keys)}{f' in a trial ({ranges.named(values)})' if values else ''}"

    return place
