"""What rows of defaults are compared with: the resolved configuration, settings classes and constants.

A row is (owner, key, value, source). An owner is one of

    steps/steer                          an entity of config/, everything that `like:` brings filled in
    steps/steer on gemma-3-12b-it        the same as it is done on a model
    settings TrainingSettings            a settings class; a `Settings` goes by its module, settings steps.aside
    constants bulwark.evaluation.roc     a module's public names

The key is the path of a value, or of a map of values, of which the row then names as many as it likes; the key "" is
the whole entity. A source that begins with "ours" says that the value is our own choice, and why.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bulwark import benchmarks, judges, steps
from bulwark.config import loading
from bulwark.config.catalogue import Catalogue
from bulwark.config.entities import Trait
from bulwark.settings import Closed, read_yaml
from bulwark.steering.vectors.projections import ProjectionSettings

Row = tuple[str, str, Any, str]


class Digest(str):
    """Of a value that is too long for a row: the first 16 digits of the SHA-256 of its JSON."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> Digest:
        return cls(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16])


CONFIG = Path(__file__).parents[3] / "config"
# Sections that are pinned, and what of an entity is prose. The miniature's own values have no source; its results show
# when they change.
SECTIONS = {"models", "steps", "traits", "projections", "benchmarks"}
PROSE = {"description", "source"}
MINIATURE = {"miniature", "rude", "flattering", "boastful", "tasks"}


@functools.cache
def resolved() -> Catalogue:
    return loading.load(read_yaml(CONFIG / "config.yaml"), CONFIG)


def check(rows: list[Row]) -> None:
    """Fail with one line for each value that is not what its row says."""
    assert not (lines := differing(rows)), "\n".join(lines)


def differing(rows: list[Row]) -> list[str]:
    """One line for each value that is not what its row says."""
    lines = []
    for owner, key, expected, source in rows:
        assert source, f"{owner}, {key}: a row needs a source"
        for path, value in values(owner, key, expected):
            try:
                actual = at(whole(owner), path)
            except KeyError:
                lines.append(f"{owner}: there is no {path} (source: {source})")
                continue
            if isinstance(value, Digest):
                actual = Digest.of(actual)
            if json.dumps(actual, sort_keys=True) != json.dumps(value, sort_keys=True):
                lines.append(f"{owner}: {path} is {actual!r}, but its row says {value!r} (source: {source})")
    return lines


def named(rows: list[Row]) -> list[tuple[str, str]]:
    """The (owner, path) of each value that the rows name."""
    return [(owner, path) for owner, key, expected, _ in rows for path, _ in values(owner, key, expected)]


def values(owner: str, key: str, expected: Any) -> Iterator[tuple[str, Any]]:
    """The values of a row. An entity's are single ones; a default or a constant that is a map is compared whole."""
    if "/" in owner:
        return leaves(expected, key)
    return iter(expected.items() if key == "" else [(key, expected)])


def stated() -> set[tuple[str, str]]:
    """The (owner, path) of each value that a file of config/ writes down, but for the miniature's."""
    found = set()
    for section in SECTIONS:
        for file in (CONFIG / section).glob("*.yaml"):
            if file.stem in MINIATURE or file.stem.startswith("miniature_"):
                continue
            entity = read_yaml(file)
            models = entity.pop("models", {})
            prose = PROSE if section != "models" else {"description"}
            parts = {f"{section}/{file.stem}": {key: value for key, value in entity.items() if key not in prose}}
            parts |= {f"{section}/{file.stem} on {name}": part for name, part in models.items() if name != "miniature"}
            found |= {(owner, path) for owner, part in parts.items() for path, _ in leaves(part, "")}
    return found


def defaulted() -> set[tuple[str, str]]:
    """The (owner, field) of each default of a settings class that config/ can set."""
    return {
        (f"settings {name}", field)
        for name, cls in settings_classes().items()
        for field in vars(cls).get("__annotations__", {})
        if field in cls.model_fields and not cls.model_fields[field].is_required()
    }


@functools.cache
def settings_classes() -> dict[str, type[Closed]]:
    """Every settings class that is reached from those of steps, benchmarks, judges, traits and projections."""
    roots: list[type[BaseModel]] = [Trait, ProjectionSettings, judges.JudgeSettings]
    for package in (steps, benchmarks, judges):
        for module in pkgutil.iter_modules(package.__path__):
            cls = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "Settings", None)
            if cls is not None and module.name not in ("oracle", "tasks"):  # the miniature's
                roots.append(cls)
    found: dict[str, type[Closed]] = {}
    while roots:
        cls = roots.pop()
        if cls in found.values() or not issubclass(cls, Closed) or cls is Closed:
            continue
        name = cls.__name__
        if name in ("Settings", "Scoring"):
            name = cls.__module__.removeprefix("bulwark.") + ("" if name == "Settings" else f".{name}")
        assert name not in found, f"two settings classes are called {name}"
        found[name] = cls
        roots.extend(cls.__bases__)
        for field in cls.model_fields.values():
            roots.extend(_classes_in(field.annotation))
    return found


def whole(owner: str) -> Any:
    """Everything that belongs to an owner, as plain data. Raises KeyError for an unknown one."""
    kind, _, name = owner.partition(" ")
    if kind == "settings":
        cls = settings_classes()[name]
        return {
            field: _plain(cls.model_fields[field].get_default(call_default_factory=True), exclude_unset=True)
            for field in cls.model_fields
            if not cls.model_fields[field].is_required()
        }
    if kind == "constants":
        module = importlib.import_module(name)
        return {key: _plain(value) for key, value in vars(module).items() if key.isupper()}
    return _entity(owner)


@functools.cache
def _entity(owner: str) -> dict[str, Any]:
    """An entity as it is resolved, with what its file alone says: what it is like, and of which kind."""
    place, _, model = owner.partition(" on ")
    section, name = place.split("/")
    known = resolved()
    if section in ("models", "datasets"):
        return getattr(known, section)[name].model_dump(mode="json")
    if section == "traits":
        judge = known.judge_of_trait(name)
        return known.trait(name).model_dump(mode="json") | {"judge": judge and judge.model_dump(mode="json")}
    entity = known.resolve(section, model or None, name)
    kind = {"kind": entity.module, "grid": known.steps[name].grid} if section == "steps" else {}
    return _plain(vars(entity)) | kind | {"like": read_yaml(CONFIG / f"{place}.yaml").get("like")}


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each value of nested maps with its path; lists are values, and so are empty maps."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def at(data: Any, path: str) -> Any:
    """The value under a path. A key may hold points itself, as a model's name does."""
    if not path:
        return data
    if not isinstance(data, Mapping):
        raise KeyError(path)
    if path in data:
        return data[path]
    for key in sorted(data, key=len, reverse=True):
        if path.startswith(f"{key}."):
            return at(data[key], path.removeprefix(f"{key}."))
    raise KeyError(path)


def _plain(value: Any, exclude_unset: bool = False) -> Any:
    """Settings as maps; with exclude_unset only what differs by name from their class's own defaults."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=exclude_unset)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [cls for part in getattr(annotation, "__args__", ()) for cls in _classes_in(part)]
