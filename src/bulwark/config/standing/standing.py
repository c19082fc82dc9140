"""How what lies under results/ stands to what a plan asks for: done, stale (and why), or missing.

A result is done if it is there, its seal says that it is what the plan asks for, and its inputs hold today what they
held when it was made. Time stamps count nothing, so results copied from elsewhere are right, or stale.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bulwark import files, seals
from bulwark.config.standing.asked import gpus_of, same
from bulwark.config.standing.reasons import CODE_HAS_CHANGED, difference
from bulwark.errors import BulwarkError, CheckpointError


@dataclass(frozen=True)
class Task:
    """One job of a plan: what is asked of it (see `asked`), the files it reads and makes, and its parameters."""

    asked: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """of: files of one job. reason: why it is stale, or would be if it were not missing; "" where nothing says so.

    root: whether the reason is its own, and not that it is made from something stale. gpus: that it was made with.
    defined_otherwise: whether the reason is that settings or inputs are others, and not only the code.
    """

    state: Literal["done", "stale", "missing"]
    reason: str = ""
    root: bool = True
    gpus: int = 0
    defined_otherwise: bool = False


class Standings:
    """How the files of some tasks stand; each is looked at once."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = {output: task for task in tasks for output in task.outputs}
        self._known: dict[int, Standing] = {}
        self._contents: dict[str, str | None] = {}

    def of(self, task: Task) -> Standing:
        """Raises BulwarkError for a seal or result that cannot be opened: no job can make it again where it lies.

        RecursionError where tasks need one another in a circle, which no plan has.
        """
        known = self._known.get(id(task))
        if known is None:
            known = self._known[id(task)] = self._judged(task)
        return known

    def as_plain(self) -> list[dict[str, Any]]:
        """All tasks with their standings, for a file: asked, inputs, outputs, state, reason, root."""
        return [
            {"asked": task.asked, "inputs": task.inputs, "outputs": task.outputs, **asdict(self.of(task))}
            for task in {id(task): task for task in self.tasks.values()}.values()
        ]

    def orphans(self) -> list[str]:
        """Files under results/ that tasks read and no task makes, though no user put them there."""
        read = {path for task in self.tasks.values() for path in task.inputs}
        return sorted(path for path in read - self.tasks.keys() if path.startswith("results/"))

    def _judged(self, task: Task) -> Standing:
        gone = [path for path in task.outputs if not os.path.exists(path)]
        reason, root, gpus, defined_otherwise = "", True, 0, False
        for path in task.outputs:
            try:
                seal = seals.read(path)
            except CheckpointError as error:
                reason = str(error)
                break
            if seal is None and path in gone:
                continue
            if seal is None:
                reason = f"{path} has no seal, so nothing says what it was made from"
                break
            gpus = max(gpus, gpus_of(seal.asked))
            reason = self._difference(path, seal, task)
            defined_otherwise = reason not in ("", CODE_HAS_CHANGED)
            if not reason and (path not in gone or os.path.islink(path)):
                reason = seals.damage(path)
            if reason:
                break
        else:
            reason = self._upstream(task)
            root = not reason
        return Standing("missing" if gone else "stale" if reason else "done", reason, root, gpus, defined_otherwise)

    def _difference(self, path: str, seal: seals.Seal, task: Task) -> str:
        """What the seal of a file says differently from the task; "" for nothing."""
        if not same(seal.asked, task.asked):
            return difference(path, seal.asked, task.asked, task.params)
        for read, held in seal.inputs.items():
            if read not in task.inputs:
                return f"it was made from {read}, which it does not read any more"
            holds = self._content(read)
            if holds is None:
                return f"{read}, which it was made from, is not there"
            if holds != held:
                return f"{read}, which it was made from, has another content now"
        new = [read for read in task.inputs if read not in seal.inputs]
        return f"it was made without {new[0]}, which it reads now" if new else ""

    def _upstream(self, task: Task) -> str:
        """Which input is stale itself, or would be."""
        for read in task.inputs:
            made_by = self.tasks.get(read)
            if made_by is not None and (reason := self.of(made_by).reason):
                return f"it is made from {read}: {reason}" if self.of(made_by).root else reason
        return ""

    def _content(self, path: str) -> str | None:
        """The digest of what a file holds today, or would if it were there; None where nothing says."""
        if path not in self._contents:
            try:
                seal = seals.read(path) if path in self.tasks else None
                digest_of = seals.content if seals.is_result(path) else seals.own_content
                self._contents[path] = digest_of(path) if seal is None else seal.sha256
            except CheckpointError:
                self._contents[path] = None
        return self._contents[path]


def made_from(paths: Iterable[str], folder: str = "results") -> dict[str, str]:
    """{path: what was asked} of all results below a folder made from one of `paths`, over any number of steps.

    By their seals: no plan is needed, so these may be results of other configurations.
    """
    asked: dict[str, str] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    for path in _sealed(folder):
        with suppress(BulwarkError):
            if seal := seals.read(path):
                asked[path] = seal.asked
                for read in seal.inputs:
                    readers[read].append(path)
    found: dict[str, str] = {}
    ahead = list(paths)
    while ahead:
        for path in readers.pop(ahead.pop(), ()):
            if path not in found:
                found[path] = asked[path]
                ahead.append(path)
    return found


def _sealed(folder: str) -> Iterator[str]:
    """All results below a folder that are there and have a seal, or are a manifest."""
    for place, _, names in files.walk(folder):
        there = set(names)
        for name in names:
            if name in seals.MANIFESTS or f"{name}{seals.ENDING}" in there:
                yield os.path.join(place, name)
