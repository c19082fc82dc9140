"""What tables, figures, claims and the menu ask for: see `bulwark.config.plan`.

A cell is one measurement: model, recipe, seed, benchmark (or analysis) and the path of its scores.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bulwark.config import checks, digests, paths, recipes
from bulwark.config.catalogue import Catalogue
from bulwark.config.entities import Study
from bulwark.errors import ConfigurationError, nearest
from bulwark.evaluation.metrics import records_beside
from bulwark.reporting.columns import those_named
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import find

Cell = dict[str, Any]
_SIDE_BY_SIDE = 8  # recipes whose answers the report compares


@dataclass(frozen=True)
class Shown:
    """What a job gets that makes a table or figure, or checks the claims.

    spec: settings. cells: the measurements it shows. scores: their files, and those with the rows. published: the file
    of config/published that it compares with; none if it names none. code: a digest. missing: scores that it shows as
    missing, with the option `partial`.
    """

    spec: dict[str, Any]
    cells: list[Cell] | dict[str, list[Cell]]
    scores: list[str]
    published: Path | list
    code: str
    missing: tuple[str, ...] = ()


# --- tables and figures ---


@cache
def table(catalogue: Catalogue, table: str) -> Shown:
    entity = find(catalogue.tables, table, "table", f"{paths.report(catalogue.name)}/tables/")
    return _shown(catalogue, entity, f"table_{table}", digests.code_digest("bulwark.reporting.tables:make_table"))


@cache
def figure(catalogue: Catalogue, figure: str) -> Shown:
    entity = find(catalogue.figures, figure, "figure", f"{paths.report(catalogue.name)}/figures/")
    return _shown(catalogue, entity, f"figure_{figure}", digests.figure_digest(entity.kind))


def _shown(catalogue: Catalogue, entity: Table | Figure, where: str, code: str) -> Shown:
    checks.check_measured(catalogue, entity, where)
    cells = _cells(catalogue, entity.study, entity.benchmarks(), entity.recipes())
    published = catalogue.folder / "published" / f"{entity.published}.yaml" if entity.published else []
    partly = catalogue.partial and (isinstance(entity, Table) or entity.kind == "cross")
    missing = tuple(cell["scores"] for cell in cells if partly and not Path(cell["scores"]).exists())
    there = [cell for cell in cells if cell["scores"] not in missing]
    return Shown(entity.model_dump(mode="json"), cells, _files_of(there), published, code, missing)


def _cells(catalogue: Catalogue, study: str, names: Collection[str], only: Sequence[str]) -> list[Cell]:
    """A study's measurements of these benchmarks and analyses, of the named recipes or, if none are, of all."""
    shown = set(those_named(only, find(catalogue.studies, study, "study").every_recipe))
    return [cell for cell in _cells_of(catalogue, study) if cell["benchmark"] in names and cell["recipe"] in shown]


@cache
def _cells_of(catalogue: Catalogue, study: str) -> list[Cell]:
    keys = ("model", "recipe", "seed", "benchmark", "scores")
    cells = [(*cell, paths.scores(*cell)) for cell in catalogue.cells(study)]
    cells += [(*cell, paths.analysis(*cell)) for cell in catalogue.analysis_cells(study)]
    return [dict(zip(keys, cell, strict=True)) for cell in cells]


def _files_of(cells: Iterable[Cell]) -> list[str]:
    scores = [cell["scores"] for cell in cells]
    return scores + list(map(_records_of, scores))


@cache  # tables, figures and claims show the same cells
def _records_of(scores: str) -> str:
    return str(records_beside(Path(scores)))


# --- claims and the report ---


@cache
def claims(catalogue: Catalogue) -> Shown:
    """Every claim of every study, in their order."""
    known = {name: catalogue.claims[name] for study in catalogue.studies.values() for name in study.claims}
    cells = {name: _cells(catalogue, claim.study, claim.benchmarks(), claim.recipes()) for name, claim in known.items()}
    return Shown(
        {name: claim.model_dump(mode="json") for name, claim in known.items()},
        cells,
        sorted({path for of_claim in cells.values() for path in _files_of(of_claim)}),
        [],
        digests.code_digest(
            "bulwark.reporting.claims:check_claim",
            "bulwark.reporting.claims:corrected",
            "bulwark.reporting.verdicts:write_claims",
        ),
    )


@cache
def columns(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """How tables show what each claim measures: {claim: {"<benchmark>.<metric>": settings of the column}}.

    The tables that the claim's study lists come first, then others of that study, then all.
    """
    return {name: _columns_of(catalogue, catalogue.claims[name]) for name in claims(catalogue).spec}


def _columns_of(catalogue: Catalogue, claim: Claim) -> dict[str, Any]:
    listed = catalogue.studies[claim.study].tables

    def remoteness(name: str) -> tuple[bool, bool]:
        return name not in listed, catalogue.tables[name].study != claim.study

    found: dict[str, Any] = {}
    for name in sorted(catalogue.tables, key=remoteness):
        # What shows a metric itself comes before what shows that of attacks, whose label would mislead.
        table = catalogue.tables[name]
        there = [*table.columns, *(table.cross.columns() if table.cross else ())]
        for column in sorted(there, key=lambda column: column.case is not None):
            if (column.benchmark, column.metric) in claim.metrics():
                found.setdefault(f"{column.benchmark}.{column.metric}", column.plain().model_dump(mode="json"))
    return found


@cache
def measured(catalogue: Catalogue) -> Shown:
    """Every measurement and analysis of every study, once."""
    every = {cell["scores"]: cell for study in catalogue.studies for cell in _cells_of(catalogue, study)}
    code = digests.code_digest("bulwark.reporting.tidy:write_results")
    return Shown({}, list(every.values()), list(every), [], code)


@dataclass(frozen=True)
class Page:
    """What the job gets that writes the report.

    studies: of those that run something, what the page says of them; its recipes, trials as one, as `chains`; what it
    shows answers of as `examples`. tables: {name: its spec and cells}. published: the files of config/published that
    they compare with. figures: {name: its PNG and benchmarks}. toys: the models that the workflow pre-trains itself.
    sources: all files that it reads beside these and claims.json. code: a digest.
    """

    studies: list[dict[str, Any]]
    tables: dict[str, dict[str, Any]]
    published: list[str]
    figures: dict[str, dict[str, Any]]
    toys: list[str]
    sources: list[str]
    code: str


@cache
def page(catalogue: Catalogue) -> Page:
    """Every table and figure that a study lists, of the studies that run something or show what another has run."""
    told = {"description", "models", "attacked", "seeds", "benchmarks", "analyses", "tables", "figures"}
    shown = {
        name: study
        for name, study in catalogue.studies.items()
        if study.tables or study.figures or _cells_of(catalogue, name)
    }
    tables = {name: table(catalogue, name) for study in shown.values() for name in study.tables}
    figures = {
        name: {
            "png": paths.figure(catalogue.name, name)[1],
            "benchmarks": sorted(find(catalogue.figures, name, "figure").benchmarks()),
        }
        for study in shown.values()
        for name in study.figures
    }
    examples = {name: _examples(catalogue, study) for name, study in shown.items()}
    files = [*measured(catalogue).scores, *(each["png"] for each in figures.values())]
    for each in tables.values():
        files += each.scores
    for group in (group for of_study in examples.values() for group in of_study):
        files.append(group["records"])
        for cell in group["cells"]:
            files += [cell["answers"], str(records_beside(Path(cell["scores"])))]
    used = {model for study in shown.values() for model in study.models}
    return Page(
        studies=[
            {
                "name": name,
                **study.model_dump(mode="json", include=told),
                **_recipes_told(study),
                "every_recipe": list(study.every_recipe),
                "chains": _chains(study),
                "examples": examples[name],
            }
            for name, study in shown.items()
        ],
        tables={name: {"spec": each.spec, "cells": each.cells} for name, each in tables.items()},
        published=sorted({str(each.published) for each in tables.values() if each.published}),
        figures=figures,
        toys=sorted(model for model in used if catalogue.models[model].source.miniature is not None),
        sources=list(dict.fromkeys(files)),
        code=digests.code_digest("bulwark.reporting.report:make_report"),
    )


def _recipes_told(study: Study) -> dict[str, list[str]]:
    """A study's recipes and attacks as it lists them, with how many trials stand behind `.*`."""

    def told(written: str) -> str:
        count = len(recipes.expanded(written, study.trials))
        return f"{written} ({count} trials)" if recipes.TRIALS in written else written

    return {"recipes": [*map(told, study.recipes)], "attacks": [*map(told, study.attacks)]}


def _chains(study: Study) -> list[str]:
    """A study's recipes and then those under attack, the trials of one step as `.*`."""
    grid = (written for attack in range(len(study.attacks)) for written in study.under(attack))
    return list(dict.fromkeys([*study.recipes, *grid]))


def _examples(catalogue: Catalogue, study: Study) -> list[dict[str, Any]]:
    """For each model and benchmark of a study: recipes whose answers stand side by side, at their first seed.

    However large a study is, they are at most _SIDE_BY_SIDE: of one with attacks, as many defenses as there is room
    for, each without and with the first attack; else the first ones.
    """
    every = study.every_recipe
    attacked = set(every) - {recipe for told in study.recipes for recipe in recipes.expanded(told, study.trials)}
    first: Iterable[str] = every
    if study.attacks and len(every) > _SIDE_BY_SIDE:
        defended = study.recipes if study.attacked is None else study.attacked
        pairs = zip(defended, study.under(0), strict=True)
        first = (recipes.expanded(told, study.trials)[0] for pair in pairs for told in pair)
    chosen = [recipe for recipe in dict.fromkeys(first) if recipe in every][:_SIDE_BY_SIDE]

    def cell(model: str, recipe: str, benchmark: str) -> dict[str, Any]:
        [seed, *_] = catalogue.seeds(recipe, study.seeds)
        where = (model, recipe, seed, benchmark)
        files = {"scores": paths.scores(*where), "answers": paths.answers(*where)}
        return {"recipe": recipe, "seed": seed, **files, "attacked": recipe in attacked}

    def group(model: str, name: str) -> dict[str, Any]:
        benchmark = catalogue.benchmark(model, name)
        return {
            "model": model,
            "benchmark": name,
            "records": paths.records(benchmark.dataset, benchmark.split),
            "of_recipes": len(every),
            "cells": [cell(model, recipe, name) for recipe in chosen],
        }

    return [group(model, name) for model in study.models for name in study.benchmarks]


# --- the menu ---


def shown(catalogue: Catalogue, *studies: str) -> list[str]:
    """The tables and figures of studies, or of all."""
    chosen = [catalogue.studies[name] for name in studies or catalogue.studies]
    tables = [path for study in chosen for name in study.tables for path in paths.table(catalogue.name, name)]
    return tables + [path for study in chosen for name in study.figures for path in paths.figure(catalogue.name, name)]


def of_study(catalogue: Catalogue, name: str) -> list[str]:
    """What the target of a study makes: its tables and figures or, where others show what it measures, its numbers."""
    return shown(catalogue, name) or sorted({cell["scores"] for cell in _cells_of(catalogue, name)})


def scores(catalogue: Catalogue) -> list[str]:
    return sorted({paths.scores(*cell) for study in catalogue.studies for cell in catalogue.cells(study)})


def analyses(catalogue: Catalogue) -> list[str]:
    return sorted({paths.analysis(*cell) for study in catalogue.studies for cell in catalogue.analysis_cells(study)})


def checkpoints(catalogue: Catalogue) -> list[str]:
    return sorted({paths.checkpoint(*cell[:3]) for study in catalogue.studies for cell in catalogue.cells(study)})


def records(catalogue: Catalogue) -> list[str]:
    """All records behind the checkpoints and scores of the studies."""
    asked: set[tuple[str, str]] = set()
    cells = {(model, recipe, name) for study in catalogue.studies for model, recipe, _, name in catalogue.cells(study)}
    for model, recipe, name in cells:
        benchmark = catalogue.benchmark(model, name)
        asked.add((model, f"data/{benchmark.dataset}/{benchmark.split}.jsonl"))
        files = [*benchmark.inputs.values(), *_step_inputs(catalogue, model, recipe)]
        asked |= {(model, file) for file in files}
    return sorted({f"results/{path}" for model, file in asked for path in _records_behind(catalogue, model, file)})


def papers(catalogue: Catalogue) -> dict[str, list[str]]:
    """{paper: its studies}, of those that show something."""
    found: dict[str, list[str]] = {}
    for name, study in catalogue.studies.items():
        if study.paper and shown(catalogue, name):
            found.setdefault(study.paper, []).append(name)
    return found


def refuse_target(catalogue: Catalogue, kind: str, name: str) -> None:
    """Raise ConfigurationError for a target `<kind>_<name>` that does not exist."""
    if kind == "study" and (name in catalogue.left_out or name in catalogue.studies):
        raise ConfigurationError(
            f'target "study_{name}": this configuration leaves the study out ({catalogue.where("studies", name)}). '
            "Name a model in its `models`, or leave out the --configfile of the overlay that empties it; `run:` of an "
            "overlay names the studies it runs."
        )
    entities = {"table": catalogue.tables, "figure": catalogue.figures, "study": catalogue.studies}
    find({**entities, "paper": papers(catalogue)}[kind], name, kind, f'target "{kind}_{name}"')


# A wildcard in a path of Snakemake's, with the regular expression that limits it.
_WILDCARD = re.compile(r"\{(\w+),((?:[^{}]|\{[^{}]*\})*)\}")


def refuse_unknown(asked: str, targets: Collection[str], outputs: Collection[str]) -> None:
    """Raise ConfigurationError, with what is nearest, for a target or path that no rule makes.

    targets: the names of rules. outputs: the paths that rules make, with wildcards, `results/data/{dataset}/…`.
    """
    if "/" not in asked:
        raise ConfigurationError(
            f'There is no target "{asked}".{nearest(asked, targets)} `snakemake --list-target-rules` lists them all.'
        )
    parts = asked.split("/")
    limits = {name: what for form in outputs for name, what in _WILDCARD.findall(form)}
    outputs = [_WILDCARD.sub(r"{\1}", form) for form in outputs]
    same = [form for form in outputs if form.count("/") == asked.count("/")]
    meant = min((_as_form(parts, form.split("/"), limits) for form in same), default=None)
    if meant is None or meant[0] > len(parts) / 2:  # too few or too many folders: the form of the nearest stage
        stages = {form.split("/")[1]: form for form in reversed(outputs) if form.startswith("results/")}
        close = difflib.get_close_matches(parts[1], stages, n=1)
        form = f' Paths there look like "{stages[close[0]]}".' if parts[0] == "results" and close else ""
        raise ConfigurationError(
            f'There is no file "{asked}", and no rule makes it.{form} All paths: docs/architecture.md.'
        )
    raise ConfigurationError(f'There is no file "{asked}", and no rule makes it. Did you mean "{meant[1]}"?')


def _as_form(parts: list[str], form: list[str], limits: Mapping[str, str]) -> tuple[float, str]:
    """How far the parts of a path are from those of a form, and the path in this form; limits: of its wildcards."""
    far, meant = 0.0, []
    for part, wanted in zip(parts, form, strict=True):
        pieces = re.split(r"{(\w+)}", wanted)  # every second one is a wildcard
        regex = "".join(f"(?:{limits.get(p, '[^/]+')})" if n % 2 else re.escape(p) for n, p in enumerate(pieces))
        fits = re.fullmatch(regex, part) is not None
        unpadded = re.sub(r"^(seed)0+(?=\d)", r"\1", part)
        if not fits and re.fullmatch(regex, unpadded):  # seed00 means seed0
            part, fits, far = unpadded, True, far + 0.1
        far += 0.0 if fits else 2 - difflib.SequenceMatcher(None, part, wanted).ratio()
        meant.append(part if fits else wanted)
    return far, "/".join(meant)


def refuse_report(catalogue: Catalogue, report: str) -> None:
    """Raise ConfigurationError for the path of a report that is another configuration's."""
    raise ConfigurationError(
        f'{paths.report(report)}/ belongs to the configuration "{report}", and this one is "{catalogue.name}": ask '
        f'for a file of {paths.report(catalogue.name)}/, or give the --configfile whose `name:` is "{report}".'
    )


def _step_inputs(catalogue: Catalogue, model: str, recipe: str) -> list[str]:
    """What the steps of a recipe read, as path templates."""
    return [path for step in recipes.steps_of(recipe) for path in catalogue.step(model, step).inputs.values()]


def _records_behind(catalogue: Catalogue, model: str, path: str) -> list[str]:
    """The records without which a file that a step or benchmark asks for (a path under results/) cannot be made."""
    stage, *folders, file = path.split("/")
    name = file.split(".")[0]
    asked: list[str] = []
    if stage == "data":
        return [path]
    if stage == "vectors":
        trait = catalogue.trait(name)
        return [] if model in trait.files else [f"data/{trait.dataset}/{trait.split}.jsonl"]
    if stage == "projections":
        projection = catalogue.projection(model, name)
        asked = [f"data/{projection.dataset}/{projection.split}.jsonl", *projection.inputs.values()]
    if stage == "checkpoints":
        recipe = folders[1].removeprefix("{prefix}")
        if recipe != "{parent}":  # a parent is a checkpoint of the plan itself
            asked = _step_inputs(catalogue, model, recipe)
    return [records for path in asked for records in _records_behind(catalogue, model, path)]
