"""What the plan asks of a job, in one line that its results keep: so that a later plan can tell whether they are it.

    <digest of all of it> <rule>:<wildcards joined by /> <part>=<short digest> …

The digest decides; what follows only serves to say what is different. It covers what the plan decides about this job
alone: the rule, its wildcards and its parameters (settings, digests of code …), not what its inputs are made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SHORT = 8
# {(name, id): (value, digest, text)} of values that jobs share; they are held, so that an id stays theirs.
_known: dict[tuple[str, int], tuple[Any, str, str]] = {}


def asked(rule: str, wildcards: Iterable[str], params: Mapping[str, Any]) -> str:
    """The line of a job; params: {name: plain data}."""
    whole = hashlib.sha256()
    what = f"{rule}:{'/'.join(wildcards)}"
    whole.update(what.encode())
    words = [what]
    for name in sorted(params):
        digest, text = _described(name, params[name])
        whole.update(f"\n{name}={digest}".encode())
        words.append(text)
    return " ".join([whole.hexdigest(), *filter(None, words)])


def same(one: str, other: str) -> bool:
    """Whether two lines ask for the same."""
    return one.split(" ", 1)[0] == other.split(" ", 1)[0]


def _described(name: str, value: Any) -> tuple[str, str]:
    """The digest of a parameter, and its parts in short."""
    if not isinstance(value, dict | list):
        digest = _digest(value)
        return digest, f"{name}={digest[:_SHORT]}"
    known = _known.get((name, id(value)))
    if known is None:
        text = " ".join(f"{part}={_digest(item)[:_SHORT]}" for part, item in _parts(name, value))
        known = _known[name, id(value)] = (value, _digest(value), text)
    return known[1], known[2]


def _parts(name: str, value: Any, depth: int = 2) -> Iterator[tuple[str, Any]]:
    """The parts of a parameter that are told apart: what a map holds, and the maps in it."""
    if not depth or not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, item in value.items():
        yield from _parts(f"{name}.{key}", item, depth - 1)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
