"""Reading the configuration: entity files and the sections of an overlay, joined, completed and checked."""

from __future__ import annotations

from collections.abc import Mapping
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
from bulwark.errors import ConfigurationError, nearest
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.settings import Closed, completed, find, merged, read_yaml, validated

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


def load(configuration: overlays.Configuration | Mapping[str, Any], folder: Path) -> Catalogue:
    """Join the entity files under `folder` with the sections of a configuration, and check the whole.

    A plain map stands for a configuration of one file. Raises ConfigurationError that names file or section, key and
    the nearest valid name.
    """
    if not isinstance(configuration, overlays.Configuration):
        configuration = overlays.Configuration((overlays.File("the configuration", configuration),))
    config = configuration.sections
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
        # What others are like comes before them, so that a mistake in it is not reported as one of theirs.
        maps = {name: whole[name] for name in sorted(maps, key=lambda name: _generation(name, maps))}
        entities[section] = {
            name: _entity(cls, data, name, folder / section, section, over) for name, data in maps.items()
        }
    studies = {
        name: validated(Study, data, f"studies.{name}")
        for name, data in _map(config.get("studies") or {}, "studies").items()
    }
    catalogue = Catalogue(**entities, studies=studies, folder=folder, name=configuration.name)
    checks.check(catalogue)
    published = {path.stem: path for path in (folder / "published").glob("*.yaml")}
    for section in ("tables", "figures"):
        for name, entity in entities[section].items():
            if entity.published is not None:
                find(published, entity.published, "file of config/published", f"config/{section}/{name}.yaml")
    return catalogue


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
    file = [f"{folder.parent.name}/{section}/{name}.yaml"] if (folder / f"{name}.yaml").exists() else []
    overlay = [f"{section}.{name} of the overlay"] if name in over else []
    try:
        return validated(cls, data, " with ".join(file + overlay))
    except ConfigurationError as error:
        if file:
            raise
        files = [path.stem for path in folder.glob("*.yaml")]
        raise ConfigurationError(
            f"{error}\nThere is no {section}/{name}.yaml to change.{nearest(name, files)}"
        ) from None
