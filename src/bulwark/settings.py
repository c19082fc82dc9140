"""Closed, typed settings: every key is known, every value has a type, and errors say where and what to write.

All configuration is described by `Closed` classes. `validated` makes one from plain data (YAML or JSON); its errors
name the file, the key's path and the nearest valid key. Nothing heavy is imported here, because the workflow reads its
configuration with this module at every start.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from bulwark.errors import ConfigurationError, nearest

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast, where PyYAML was built with libyaml
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

_EXPONENT_WITHOUT_POINT = re.compile(r"^[+-]?(\d+)(\.\d*)?[eE]([+-]?\d+)$")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty; fill it, or remove the record")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]  # a text that is not blank

SettingsClass = TypeVar("SettingsClass", bound="Closed")
Value = TypeVar("Value")


class Closed(BaseModel):
    """Base of all settings: immutable; unknown keys and silent conversions (text to number, for example) are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def inputs(self) -> dict[str, str]:
        """The files under results/ that are read with these settings: {name: path template}.

        Collected from all settings inside these. A class that names files itself adds them to `super().inputs()`.
        """
        return {name: path for part in _settings_in(vars(self)) for name, path in part.inputs().items()}


def _settings_in(value: Any) -> Iterator[Closed]:
    """The outermost settings in a value: itself, or those in the lists and maps it is made of."""
    if isinstance(value, Closed):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _settings_in(part)


def validated(cls: type[SettingsClass], data: Any, where: str) -> SettingsClass:
    """Build `cls` from plain data; `where` names the file or section for the error message.

    Raises ConfigurationError listing each wrong key or value with its path.
    """
    try:
        # Through JSON, where a list is the only kind of sequence: strict mode then accepts it for a tuple field.
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = [_explained(problem, cls) for problem in error.errors()]
        raise ConfigurationError("\n".join(f"{where}: {line}" for line in lines)) from None
    except TypeError as error:
        raise ConfigurationError(f"{where}: holds a value that is not plain YAML ({error}).") from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` overlaid with `over`: maps are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both_maps else value
    return result


def completed(
    name: str, maps: Mapping[str, Mapping[str, Any]], where: str, variants: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """The map `name` of `maps`, merged over the one that its key `like` names, if it has that key.

    Raises ConfigurationError for a name that `maps` does not have, or a circle of `like`.
    """
    other = maps[name].get("like")
    if other is None:
        return maps[name]
    if other not in maps:
        raise ConfigurationError(f'{where}/{name}.yaml: like: there is no "{other}".{nearest(other, maps)}')
    if other in (*variants, name):
        circle = " is like ".join((*variants, name, other))
        raise ConfigurationError(f"{where}/{name}.yaml: like: {circle}; one of them has to stand for itself.")
    own = {key: value for key, value in maps[name].items() if key != "like"}
    return merged(completed(other, maps, where, (*variants, name)), own)


def find(known: Mapping[str, Value], name: str, kind: str, where: str = "") -> Value:
    """Look up a name. Raises ConfigurationError that says where the name stood and what is nearest to it."""
    if name not in known:
        start = f"{where}: there" if where else "There"
        raise ConfigurationError(f'{start} is no {kind} "{name}".{nearest(name, known)}')
    return known[name]


def module_named(package: str, name: str, kind: str, where: str = "") -> ModuleType:
    """Import the module `name` of `package`. Raises ConfigurationError as `find` does."""
    return importlib.import_module(f"{package}.{find(_modules_of(package), name, kind, where)}")


@cache
def _modules_of(package: str) -> dict[str, str]:
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return {name: name for name in names if not name.startswith("_")}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML map; a key written twice is an error, because YAML would silently keep the last."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected a map of settings, found {type(data).__name__}.")
    return data


class _UniqueKeyLoader(SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key}" stands twice', key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _explained(problem: ErrorDetails, cls: type[BaseModel]) -> str:
    """Say in one line what is wrong with one key."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location) or "(top)"
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{path}".{nearest(location[-1], _keys_beside(cls, problem["loc"]))}'
    if problem["type"] == "value_error":  # raised by one of our validators; its text is complete
        said = str(problem["ctx"]["error"])
        return f'"{path}": {said}.' if location else f"{said}."
    if problem["type"] == "missing":
        return f'the key "{path}" is missing.'
    if isinstance(value, str) and problem["type"] in {"float_type", "int_type"}:
        exponent = _EXPONENT_WITHOUT_POINT.match(value)
        if exponent:
            mantissa = f"{exponent[1]}{exponent[2] or '.0'}"
            written = f"{mantissa}{'0' if mantissa.endswith('.') else ''}e{int(exponent[3]):+d}"
            return f'"{path}" is the text "{value}": YAML reads it as text without a point and a sign; write {written}.'
    return f'"{path}": {problem["msg"]}, found {json.dumps(value, default=str)[:200]}.'


def _keys_beside(cls: type[BaseModel], location: tuple) -> list[str]:
    """The valid keys beside an unknown one: follows its path through the nested settings classes."""
    for part in location[:-1]:
        field = cls.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        cls = next(iter(_classes_in(field.annotation)), cls)
    return list(cls.model_fields)


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _classes_in(part)]
