"""Reporting on prompts that no attack has seen: those that stand in an attack's data, nearly or exactly, do not count.

A benchmark names the data of attacks under `scoring.seen`; its metrics are then null on the prompts that are found
there (`bulwark.data.overlap`), for every recipe alike, so that recipes can be compared record by record. How many
these are is reported, and beside them what the headline is on all prompts, which published numbers are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from bulwark.data.overlap import Known, prompts_in
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.settings import Closed

OVERLAP = "overlap"  # the column of a row: new, same or near
_NEW = "new"
_INPUT = "seen_"


class Unseen(Closed):
    """seen: what attacks have read or trained on, each as "<data set>/<split>"."""

    seen: tuple[Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*/\w[\w.-]*$")], ...] = ()

    def inputs(self) -> dict[str, str]:
        return {f"{_INPUT}{name.replace('/', '_')}": f"data/{name}.jsonl" for name in self.seen} | super().inputs()


class OnUnseen(benchmark.Benchmark):
    """A benchmark whose settings under `scoring`, if there are any, are `Unseen`."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._known = Known([])

    def read(self, inputs: Mapping[str, Path]) -> None:
        """The prompts of all that attacks have seen."""
        self._known = Known(
            prompt for name, path in inputs.items() if name.startswith(_INPUT) for prompt in prompts_in(path)
        )

    def counted(self, row: Row, prompt: str) -> Row:
        """The row of a prompt, with its overlap; if there is one, what the metrics were is kept in another column."""
        overlap = self._known.overlap(prompt) or _NEW
        if overlap == _NEW:
            return {**row, OVERLAP: overlap}
        headline = next(iter(self.metrics))
        return {**row, **dict.fromkeys(self.metrics), OVERLAP: overlap, f"{headline} if counted": row[headline]}

    def reported(self, rows: Sequence[Row]) -> dict[str, Any]:
        """How many prompts an attack has seen, and the headline on all of them; nothing where none is looked for."""
        told = super().reported(rows)
        scoring = getattr(self.settings, "scoring", None)
        if scoring is None or not scoring.seen:
            return told
        headline = next(iter(self.metrics))
        values = [row.get(f"{headline} if counted", row[headline]) for row in rows]
        known = [value for value in values if value is not None]
        return told | {
            "seen_by_an_attack": sum(row[OVERLAP] == "same" for row in rows),
            "nearly_seen_by_an_attack": sum(row[OVERLAP] == "near" for row in rows),
            f"{headline}_on_all": sum(known) / len(known) if known else None,
        }
