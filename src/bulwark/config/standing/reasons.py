"""Why a result is not what a plan asks for, in words: which setting, from what to what where its files say so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bulwark.config.standing.asked import differences

_LONGEST = 60  # of a value that is shown, in characters
_MOST = 3  # settings that are named
_UNKNOWN = object()
CODE_HAS_CHANGED = "the code that makes it has changed"


def difference(path: str, made: str, wanted: str, params: Mapping[str, Any]) -> str:
    """Why what is at `path`, made as asked in `made`, is not what is asked for in `wanted`, with these parameters."""
    was, changed = differences(made, wanted)
    if was:
        return f"it was made as another result ({was})"
    settings = [name for name in changed if name != "code" and not name.endswith(".code")]
    recorded = _recorded(path) if settings else {}
    told = [text for name in settings for text in _changes(name, _at(recorded, name), _at(params, name))]
    if len(told) > _MOST:
        told[_MOST:] = [f"{len(told) - _MOST} more settings are different"]
    if len(changed) > len(settings):
        told.append(CODE_HAS_CHANGED)
    return "; ".join(told) or "something else was asked for when it was made"


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """What has changed in a setting, key by key where both are known maps."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key, _UNKNOWN) != now.get(key, _UNKNOWN):
                yield from _changes(f"{name}.{key}", before.get(key, _UNKNOWN), now.get(key, _UNKNOWN))
        return
    name = name.removeprefix("recipe.")
    shown = [_shown(value) for value in (before, now)]
    if before is _UNKNOWN or before == now or max(map(len, shown)) > _LONGEST:
        yield f"{name} is different"
    else:
        yield f"{name} was {shown[0]} and is to be {shown[1]}"


def _recorded(path: str) -> dict[str, Any]:
    """The parameters that a result was made with, as far as it, or the file that tells of it, holds them."""
    for told in (Path(path), Path(path).with_suffix(".provenance.json")):
        if told.suffix == ".json" and told.is_file():
            try:
                known = json.loads(told.read_text(encoding="utf-8"))
            except ValueError:
                return {}
            if isinstance(known, dict):
                return {"settings": known.get("settings", known.get("provenance", {}).get("settings")), "model": known}
    return {}


def _at(data: Any, name: str) -> Any:
    """The value at "a.b.c" of maps in maps."""
    for key in name.split("."):
        if not isinstance(data, Mapping) or key not in data:
            return _UNKNOWN
        data = data[key]
    return data


def _shown(value: Any) -> str:
    return "absent" if value is _UNKNOWN else json.dumps(value, ensure_ascii=False, default=str)
