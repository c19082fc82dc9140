"""Can a model read forgotten knowledge off its prompt? The fact stands there as data, and the question is asked.

Knowledge that is missing from the weights can be brought in from outside (Deep Ignorance, O'Brien et al. 2025, arXiv
2508.06601). Every question is asked twice: with the material and without it, as `cloze` asks it.

    accuracy, mentioned    with the material, as in `cloze`
    closed_book            accuracy without it: what the weights know
"""

from __future__ import annotations

from collections.abc import Mapping

from bulwark.benchmarks import cloze
from bulwark.data.records import Turn
from bulwark.evaluation.metrics import Row
from bulwark.settings import Text

METRICS = {"accuracy": True, "mentioned": True, "closed_book": True}
OPEN, CLOSED = "open", "closed"


class Settings(cloze.Settings):
    """As those of `cloze`."""


class Record(cloze.Record):
    """A question with its right answer. material: a text that holds it; without one, the question with its answer."""

    material: Text | None = None

    @property
    def shown(self) -> str:
        """What stands in the prompt."""
        return self.material or f"{self.question} {self.answer}"


class Benchmark(cloze.Benchmark):
    schema = Record
    metrics = METRICS

    def prompts(self, record: Record) -> dict[str, list[Turn]]:
        """The question with the material as data, and without it."""
        question = Turn(role="instruction", text=record.question)
        return {OPEN: [question, Turn(role="data", text=record.shown)], CLOSED: [question]}

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row: as `cloze`, with and without the material."""
        row, closed = (cloze.compared(record, responses[variant]) for variant in (OPEN, CLOSED))
        return {**row, "closed_book": closed["accuracy"]}
