"""Reading the configuration: entity files and the sections of an overlay, joined, completed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bulwark.config import checks, overlays
from bulwark.config.catalogue import Catalogue
from bulwark.config.entities import (
    Analysis,
    Benchmark,
    Dataset,
    Model,
    Projection,
    Step,
    Study,
    Trait,
)
from bulwark.config.overlays import Configuration, Origin, Part
from bulwark.errors import ConfigurationError, nearest
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, find, read_document, validated

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


def load(configuration: Configuration | Mapping[str, Any], folder: Path) -> Catalogue:
    """Join the entity files under `folder` with the sections of a configuration, and check the whole.

    A plain map stands for a configuration of one file. Raises ConfigurationError that names file and line, key and
    the nearest valid name.
    """
    if not isinstance(configuration, Configuration):
        configuration = overlays.plain(configuration)
    known = {*_FOLDERS, "studies", overlays.NAME, overlays.RUN, overlays.ACCELERATOR}
    for file in configuration.files:
        for key in file.data:
            if key not in known:
                place = file.reach([key])[1]
                raise ConfigurationError(f'{place}: unknown section "{str(key)[:100]}".{nearest(str(key), known)}')
    entities: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], Origin] = {}
    for section, cls in _FOLDERS.items():
        own = _parts(section, folder, configuration)
        chains = {name: overlays.like(name, own, section) for name in own}
        # What others are like comes before them, so that a mistake in it is not reported as one of theirs.
        for name in sorted(own, key=lambda name: len(chains[name])):
            chain = enumerate(chains[name])
            origin = Origin(tuple(replace(part, turn=turn) for turn, other in chain for part in own[other]))
            origins[section, name] = origin
            entities.setdefault(section, {})[name] = _entity(cls, name, origin, own[name], folder / section)
    studies = {}
    for name, parts in configuration.section("studies").items():
        overlays.check_name(name, Origin(tuple(parts)).at())
        origins["studies", name] = Origin(tuple(parts))
        studies[name] = validated(Study, overlays.whole(parts), origins["studies", name])
    for section in ("tables", "figures", "claims"):
        for name, entity in entities[section].items():
            if entity.study in studies:
                entities[section][name] = entity.of_study(studies[entity.study].attacks)
    for name, figure in entities["figures"].items():
        if isinstance(figure.cross, str):
            place = origins["figures", name].at("cross")
            shown = find(entities["tables"], figure.cross, "table", place)
            if shown.cross is None:
                raise ConfigurationError(f'{place}: the table "{figure.cross}" has no cross. Name one that has.')
            entities["figures"][name] = figure.model_copy(update={"cross": shown.cross})
    chosen = configuration.chosen(list(studies))
    catalogue = Catalogue(
        **entities,
        studies={name: studies[name] for name in chosen},
        left_out=tuple(name for name in studies if name not in chosen),
        folder=folder,
        name=configuration.name,
        origins=origins,
        accelerator=configuration.accelerator(),
        partial=overlays.shows_partly(configuration.options),
        command=configuration.command,
    )
    checks.check(catalogue)
    published = {path.stem: path for path in (folder / "published").glob("*.yaml")}
    for section in ("tables", "figures"):
        for name, entity in entities[section].items():
            if entity.published is not None:
                place = catalogue.where(section, name, "published")
                find(published, entity.published, "file of config/published", place)
    return catalogue


def _parts(section: str, folder: Path, configuration: Configuration) -> dict[str, list[Part]]:
    """What file and overlays say of each entity of a section, and whether its name can be one."""
    own: dict[str, list[Part]] = {}
    for path in sorted((folder / section).glob("*.yaml")):
        document = read_document(path)
        own[path.stem] = [Part(f"{folder.name}/{section}/{path.name}", document.data, document.mark)]
    for name, parts in configuration.section(section).items():
        own[name] = own.get(name, []) + parts
    overlays.check_names(section, own)
    return own


def _entity(cls: type[Closed], name: str, origin: Origin, own: list[Part], folder: Path) -> Closed:
    """One entity; if an overlay names one that has no file and is not whole either, the name may be the mistake."""
    data = {key: value for key, value in overlays.whole(origin.parts).items() if key != "like"}
    if "models" in cls.model_fields and isinstance(data.get("models"), Mapping):
        data["models"] = overlays.on_models(origin.parts)
    try:
        return validated(cls, data, origin)
    except ConfigurationError as error:
        if (folder / f"{name}.yaml").exists() or any("like" in part.data for part in own):
            raise
        files = [path.stem for path in folder.glob("*.yaml")]
        raise ConfigurationError(
            f"{error}\nThere is no {folder.name}/{name}.yaml to change.{nearest(name, files)}"
        ) from None
