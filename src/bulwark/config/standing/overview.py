"""What of a configuration's studies is done, stale and missing: the numbers and lists of `bulwark status`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bulwark import files, seals
from bulwark.config import paths, plan_reports
from bulwark.config.catalogue import Catalogue

STATES = ("done", "stale", "missing")


@dataclass(frozen=True)
class Overview:
    """studies: {study: {kind of result: {state: how many}}}. stale: {reason: paths}, of what is stale by itself.

    derived: how many results are stale only because they are made from these. states: {path: state}. left_over: see
    `left_over`.
    """

    studies: dict[str, dict[str, Mapping[str, int]]]
    stale: dict[str, list[str]]
    derived: int
    states: dict[str, str]
    left_over: list[str]


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
            kind: Counter(states.get(path, "missing") for path in of_kind)
            for kind, of_kind in files_of(catalogue, study).items()
        }
        for study in catalogue.studies
        if catalogue.cells(study)  # an overlay's way to leave a study out
    }
    return Overview(studies, dict(stale), derived, states, left_over(catalogue))


def left_over(catalogue: Catalogue) -> list[str]:
    """Files in the configuration's folder of reports that it does not ask for, such as those of a table taken out."""
    name = catalogue.name
    asked = {*plan_reports.shown(catalogue), *paths.claims(name), *paths.results(name), paths.page(name)}
    asked |= {str(seals.seal_of(path)) for path in asked}
    there = (os.path.join(place, file) for place, _, names in files.walk(paths.report(name)) for file in names)
    return sorted(path for path in there if path not in asked and not path.endswith(seals.ENDING))


def files_of(catalogue: Catalogue, study: str) -> dict[str, list[str]]:
    """{kind of result: the files that a study asks for}."""
    cells, asked = catalogue.cells(study), catalogue.studies[study]
    return {
        "checkpoints": sorted({paths.checkpoint(*cell[:3]) for cell in cells}),
        "scores": [paths.scores(*cell) for cell in cells],
        "tables": [paths.table(catalogue.name, table)[1] for table in asked.tables],
        "figures": [paths.figure(catalogue.name, figure)[1] for figure in asked.figures],
    }
