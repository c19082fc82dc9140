"""What the plan asks of a job, in one line that its results keep: so that a later plan can tell whether they are it.

    <digest of all of it> <rule>:<wildcards joined by /> gpus=<number> <part>=<short digest> …

The digest decides; what follows only serves to say what is different, and the number of GPUs does not count. The digest
covers what the plan decides about this job alone: the rule, its wildcards and its parameters (settings, digests of code
…), not what its inputs hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SHORT = 8
_GPUS = "gpus"
_DEPTHS = {"settings": 1, "spec": 1, "specs": 1}  # results hold their settings themselves, so the line can be short
# {(name, id): (value, digest, text)} of values that jobs share; they are held, so that an id stays theirs.
_known: dict[tuple[str, int], tuple[Any, str, str]] = {}


def asked(rule: str, wildcards: Iterable[str], params: Mapping[str, Any], gpus: int = 0) -> str:
    """The line of a job; params: {name: plain data}."""
    what = f"{rule}:{'/'.join(wildcards)}"
    whole = hashlib.sha256(what.encode())
    words = []
    for name in sorted(params):
        digest, text = _described(name, params[name])
        whole.update(f"\n{name}={digest}".encode())
        words.append(text)
    return " ".join([whole.hexdigest(), what, f"{_GPUS}={gpus}", *words])


def same(one: str, other: str) -> bool:
    """Whether two lines ask for the same."""
    return one.split(" ", 1)[0] == other.split(" ", 1)[0]


def rule_of(line: str) -> str:
    """The rule of the job."""
    return _words(line)[0].partition(":")[0]


def gpus_of(line: str) -> int:
    """How many GPUs a job was given; 0 where the line does not say."""
    given = dict(_words(line)[1]).get(_GPUS, "")
    return int(given) if given.isdigit() else 0


def differences(made: str, wanted: str) -> tuple[str, list[str]]:
    """What a result was made as, "" if as what is asked for; and the parts that differ, by name."""
    (was, before), (now, after) = _words(made), _words(wanted)
    names = [*dict.fromkeys([*before, *after])]
    changed = [name for name in names if name != _GPUS and before.get(name) != after.get(name)]
    return ("" if was == now else was), changed


def _words(line: str) -> tuple[str, dict[str, str]]:
    _, what, *words = [*line.split(" "), ""] if " " not in line else line.split(" ")
    return what, dict(word.partition("=")[::2] for word in words)


def _described(name: str, value: Any) -> tuple[str, str]:
    """The digest of a parameter, and its parts in short."""
    if not isinstance(value, dict | list):
        digest = _digest(value)
        return digest, f"{name}={digest[:_SHORT]}"
    known = _known.get((name, id(value)))
    if known is None:
        text = " ".join(f"{part}={_digest(item)[:_SHORT]}" for part, item in _parts(name, value, _DEPTHS.get(name, 2)))
        known = _known[name, id(value)] = (value, _digest(value), text)
    return known[1], known[2]


def _parts(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The parts of a parameter that are told apart: what a map holds, and the maps in it."""
    if not depth or not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, item in value.items():
        yield from _parts(f"{name}.{key}", item, depth - 1)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
