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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from bulwark.errors import CombinationError, ConfigurationError, nearest

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
Where = Callable[[tuple[str | int, ...]], str]


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


def validated(cls: type[SettingsClass], data: Any, where: str | Where) -> SettingsClass:
    """Build `cls` from plain data; `where` names the file or section for the error message.

    where: a text, or a function from the path of a wrong key to the text. Raises ConfigurationError listing each wrong
    key or value with its path; a CombinationError if the values are only not possible together.
    """
    place = where if callable(where) else lambda _: where
    try:
        # Through JSON, where a list is the only kind of sequence: strict mode then accepts it for a tuple field.
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = [
            f"{place(problem['loc'])}: {_explained(problem, cls)}{_places(problem, data, place)}"
            for problem in error.errors()
        ]
        kinds = {problem["type"] for problem in error.errors()}
        raise (CombinationError if kinds == {"value_error"} else ConfigurationError)("\n".join(lines)) from None
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{place(())}: holds a value that is not plain YAML ({error}).") from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` overlaid with `over`: maps are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both_maps else value
    return result


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
    """The map of a YAML file; see `read_document`."""
    return read_document(path).data


def read_document(path: Path) -> Document:
    """Read a file that holds one YAML map.

    Raises ConfigurationError, with the line, for what is no YAML in UTF-8, for a key that stands twice (YAML would
    silently keep the last) or is no text, for what is nested too deeply or contains itself, and for an unreadable file.
    """
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path}: is no file. Name a file of settings.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}:{line}: not valid UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        ) from None
    return parsed(text, str(path))


def parsed(text: str, path: str) -> Document:
    """As `read_document`, of a text; path: what messages call it."""
    loader = SafeLoader(text)
    try:
        data, mark = _Reader(loader, path).document()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        line = f":{at.line + 1}" if at else ""
        raise ConfigurationError(f"{path}{line}: not readable as YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not readable as YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigurationError(f"{path}: expected a map of settings, found {found}.")
    return Document(data, mark)


@dataclass(frozen=True)
class Mark:
    """Where a value was written: the line of its key, and the marks of what is in it, by key or position."""

    line: int
    below: Mapping[str | int, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A YAML map, and where everything in it stands."""

    data: dict[str, Any]
    mark: Mark


class _Reader:
    """Builds plain data and marks from the events of a YAML parser.

    Not by PyYAML's own composer, which keeps no lines, lets a value contain itself, and has no limit to depth.
    """

    DEPTH, SIZE = 50, 100_000

    def __init__(self, loader: Any, path: str) -> None:
        self.loader, self.path = loader, path
        self.anchors: dict[str, tuple[Any, Mark, int] | None] = {}  # None while it is read
        self.size = 0

    def document(self) -> tuple[Any, Mark]:
        found: tuple[Any, Mark] = (None, Mark(1))
        self._next(yaml.StreamStartEvent)
        if not self.loader.check_event(yaml.StreamEndEvent):
            self._next(yaml.DocumentStartEvent)
            found = self._value(self.loader.get_event(), 0)
            self._next(yaml.DocumentEndEvent)
            if not self.loader.check_event(yaml.StreamEndEvent):
                self._refuse(self.loader.get_event(), "a second document begins; write one file for each")
        return found

    def _next(self, kind: type) -> None:
        event = self.loader.get_event()
        assert isinstance(event, kind), event

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        raise ConfigurationError(f"{self.path}:{_line(event)}: {problem}.")

    def _value(self, event: Any, depth: int) -> tuple[Any, Mark]:
        """The value that begins with an event."""
        line = _line(event)
        before = self.size
        self.size += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self._refuse(event, f"*{event.anchor} stands for nothing: there is no &{event.anchor} before it")
            known = self.anchors[event.anchor]
            if known is None:
                self._refuse(event, f"*{event.anchor} stands inside of &{event.anchor}, so it would have no end")
            self.size += known[2]
            if self.size > self.SIZE:
                self._refuse(event, f"with all its aliases the file holds more than {self.SIZE} values")
            return known[0], Mark(line, known[1].below)
        if depth > self.DEPTH:
            self._refuse(event, f"nested more than {self.DEPTH} levels deep")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        below: dict[str | int, Mark] = {}
        data: Any
        if isinstance(event, yaml.MappingStartEvent):
            data = self._map(event, depth, below)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._plain(event, "seq")
            data = []
            while not isinstance(entry := self.loader.get_event(), yaml.SequenceEndEvent):
                value, below[len(data)] = self._value(entry, depth + 1)
                data.append(value)
        else:
            data = self._scalar(event)
        mark = Mark(line, below)
        if event.anchor is not None:
            self.anchors[event.anchor] = (data, mark, self.size - before)
        return data, mark

    def _map(self, event: Any, depth: int, below: dict[str | int, Mark]) -> dict[Any, Any]:
        self._plain(event, "map")
        data: dict[Any, Any] = {}
        keys: dict[str, int] = {}  # as text, with their lines
        shared: list[tuple[dict[Any, Any], Mark]] = []  # what stands under <<, for the keys that the map has not itself
        while not isinstance(at := self.loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(at, yaml.ScalarEvent | yaml.AliasEvent):
                self._refuse(at, "a key is a list or a map; a key is a name")
            if isinstance(at, yaml.ScalarEvent) and at.value == "<<" and not at.style:
                value, mark = self._value(self.loader.get_event(), depth + 1)
                several = enumerate(value) if isinstance(value, list) else None
                for part, of in [(one, mark.below[n]) for n, one in several] if several else [(value, mark)]:
                    if not isinstance(part, dict):
                        self._refuse(at, "what stands under << is no map")
                    shared.append((part, of))
                continue
            key, _ = self._value(at, depth + 1)
            if isinstance(key, bool | float) or not isinstance(key, str | int):
                written = at.value if isinstance(at, yaml.ScalarEvent) else key
                self._refuse(at, f'the key {written} is {json.dumps(key)} to YAML; write "{written}" in quotes')
            if first := keys.get(str(key)):
                self._refuse(at, f'the key "{key}" stands twice, first in line {first}. Keep one')
            line = _line(at)
            keys[str(key)] = line
            value, mark = self._value(self.loader.get_event(), depth + 1)
            data[key], below[key] = value, Mark(line, mark.below)
        for part, of in shared:
            for key, value in part.items():
                if key not in data:
                    data[key], below[key] = value, of.below[key]
        return data

    def _scalar(self, event: Any) -> Any:
        tag = event.tag
        if tag is None and not event.implicit[0]:  # in quotes
            return event.value
        if tag in (None, "!"):
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == "tag:yaml.org,2002:timestamp":
            return event.value  # a date is text here, as it stands
        if tag not in _SCALARS:
            self._refuse(event, f"the tag {tag} is unknown; settings are plain text, numbers, true, false and null")
        try:
            return self.loader.construct_object(yaml.ScalarNode(tag, event.value, event.start_mark))
        except (ValueError, OverflowError):
            self._refuse(event, f'"{event.value[:40]}…" is no {tag.rpartition(":")[2]}')

    def _plain(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{kind}"):
            self._refuse(event, f"the tag {event.tag} is unknown; settings are plain maps and lists")


_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}


def _line(event: Any) -> int:
    """The line of a file that an event of its YAML begins in, from 1."""
    return event.start_mark.line + 1


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


def _places(problem: ErrorDetails, data: Any, place: Where) -> str:
    """Where the keys stand that a text of our validators names; "" if that is the place of the message for all of them.

    What does not fit together is often said by two files, an entity's own and an overlay.
    """
    if problem["type"] != "value_error":
        return ""
    names = re.findall(r"[A-Za-z_]\w*(?:\.\w+)*", str(problem["ctx"]["error"]))
    keys = {name: (*problem["loc"], *name.split(".")) for name in names}
    lines = {name: place(key).split(", ")[0] for name, key in keys.items() if _value_at(data, key) is not None}
    if set(lines.values()) <= {place(problem["loc"]).split(", ")[0]}:
        return ""
    return f" These stand in: {', '.join(f'{name} {line}' for name, line in lines.items())}."


def _value_at(data: Any, keys: tuple[str | int, ...]) -> Any:
    """The value under a path of keys; None if there is none."""
    for key in keys:
        inside = key in data if isinstance(data, Mapping) else isinstance(data, list) and key in range(len(data))
        if not inside:
            return None
        data = data[key]
    return data


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
