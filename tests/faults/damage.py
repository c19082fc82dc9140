"""Kinds of damage to a file, each drawn from a seeded generator, and the tally of what was said about it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REMEDIES = ("remove", "restore", "delete", "same command", "generated again", "made again", "wait for it")
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, drawn: random.Random, bits: int = 1) -> None:
    """One bit, anywhere."""
    raw = bytearray(path.read_bytes())
    for _ in range(bits):
        raw[drawn.randrange(len(raw))] ^= 1 << drawn.randrange(8)
    path.write_bytes(raw)


def flip_silently(path: Path, drawn: random.Random) -> None:
    """One bit, with the times put back: as a disk does it, or a copy that keeps times."""
    stat = path.stat()
    flip(path, drawn)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(path: Path, drawn: random.Random) -> None:
    os.truncate(path, drawn.randrange(path.stat().st_size))


def empty(path: Path, drawn: random.Random) -> None:
    os.truncate(path, 0)


def zero(path: Path, drawn: random.Random) -> None:
    """A block of zeros where there were none, as after a crash."""
    raw = bytearray(path.read_bytes())
    at = drawn.randrange(len(raw))
    size = min(drawn.choice([16, 512, 4096]), len(raw) - at)
    raw[at : at + size] = bytes(size)
    path.write_bytes(raw)


def append(path: Path, drawn: random.Random) -> None:
    with path.open("ab") as file:
        file.write(drawn.choice([b"\n", b"\0" * 64, b"{}\n", path.read_bytes()]))


def drop(path: Path, drawn: random.Random) -> None:
    """A stretch is missing; of lines, whole ones."""
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[drawn.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def edit(path: Path, drawn: random.Random) -> None:
    """A number (or a word) in a JSON document is another, and the document is as whole as before."""
    known = json.loads(path.read_text(encoding="utf-8"))
    places = list(_leaves(known))
    holder, key = drawn.choice(places)
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = not value
    elif isinstance(value, int | float):
        holder[key] = value + 1
    else:
        holder[key] = f"{value}x"
    path.write_text(json.dumps(known, indent=2), encoding="utf-8")


def delete(path: Path, drawn: random.Random) -> None:
    path.unlink()


def fold(path: Path, drawn: random.Random) -> None:
    """A folder has taken its place."""
    path.unlink()
    path.mkdir()


def nest(path: Path, drawn: random.Random) -> None:
    """So many brackets that reading them as JSON ends Python's stack."""
    path.write_text("[" * 100_000)


def _leaves(thing: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in thing.items() if isinstance(thing, dict) else enumerate(thing):
        if isinstance(value, dict | list):
            yield from _leaves(value)
        else:
            yield thing, key


@contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """Whatever is done to these files or folders within is undone."""
    kept = {path: path.with_name(f".kept-{path.name}") for path in paths}
    for path, place in kept.items():
        if path.is_dir():
            shutil.copytree(path, place)
        elif path.exists():
            shutil.copy2(path, place)
    try:
        yield
    finally:
        for path, place in kept.items():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if place.exists():
                os.replace(place, path)


class Tally:
    """What was said about faults: told (an error), mended (told, and the result is right), silent, or a riddle."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []

    def note(self, kind: str, fault: str, said: str | None, names: list[str]) -> None:
        """said: the message, None for none; names: of files, one of which it has to name, with a remedy."""
        if said is None:
            kind = "silent"
        elif not any(name in said for name in names) or not any(word in said.lower() for word in REMEDIES):
            kind = "riddles"
        self.counts[kind] += 1
        if kind in ("silent", "riddles"):
            self.bad.append(f"{kind}: {fault}: {said}")
