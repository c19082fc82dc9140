"""What of a configuration's studies is done, stale and missing: the numbers and lists of `bulwark status`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bulwark.config import paths
from bulwark.config.catalogue import Catalogue

STATES = ("done", "stale", "missing")


@dataclass(frozen=True)
class Overview:
    """studies: {study: {kind of result: {state: how many}}}. stale: {reason: paths}, of what is stale by itself.

    derived: how many results are stale only because they are made from these. states: {path: state}.
    """

    studies: dict[str, dict[str, Mapping[str, int]]]
    stale: dict[str, list[str]]
    derived: int
    states: dict[str, str]


def overview(catalogue: Catalogue, tasks: Iterable[Mapping[str, Any]]) -> Overview:
    """The overview of a plan of everything; tasks: as `Standings.as_plain` says."""
    states, stale, derived = {}, defaultdict(list), 0
    for task in tasks:
        states |= dict.fromkeys(task["outputs"], task["state"])
        if task["state"] == "stale" and task["root"]:
            stale[task["reason"]].append(task["outputs"][0])
        derived += task["state"] == "stale" and not task["root"]
    studies = {
        study: {
            kind: Counter(states.get(path, "missing") for path in files)
            for kind, files in files_of(catalogue, study).items()
        }
        for study in catalogue.studies
        if catalogue.cells(study)  # an overlay's way to leave a study out
    }
    return Overview(studies, dict(stale), derived, states)


def files_of(catalogue: Catalogue, study: str) -> dict[str, list[str]]:
    """{kind of result: the files that a study asks for}."""
    cells, asked = catalogue.cells(study), catalogue.studies[study]
    return {
        "checkpoints": sorted({paths.checkpoint(*cell[:3]) for cell in cells}),
        "scores": [paths.scores(*cell) for cell in cells],
        "tables": [paths.table(catalogue.name, table)[1] for table in asked.tables],
        "figures": [paths.figure(catalogue.name, figure)[1] for figure in asked.figures],
    }
