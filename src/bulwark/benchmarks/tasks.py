"""Task accuracy of the miniature: the share of held-out tasks that are answered exactly.

The utility that cannot be argued about: every task of the miniature world has one right answer. Any data set of
instruction, input and one right output will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bulwark.benchmarks import Metric, Row, grouped, metrics
from bulwark.data.records import Turn, read_records
from bulwark.models.decoding import Decoding
from bulwark.settings import Closed, Text

METRICS = {"accuracy": True}


class Settings(Closed):
    """How the answers are made. Scoring itself has nothing to set."""

    decoding: Decoding


class Record(Closed):
    """A task: `instruction` about `input` (may be empty) with the right `output`. `kind` groups the break-down."""

    id: str
    instruction: Text
    input: str = ""
    output: Text
    kind: str | None = None


def load(path: Path) -> list[Record]:
    """Read the records. Raises RecordError for the first that is broken."""
    return read_records(Path(path), schema=Record)


def prompts(record: Record, settings: Settings) -> dict[str, tuple[Turn, ...]]:
    """The one prompt of a record."""
    turns = (Turn(role="instruction", text=record.instruction),)
    return {"answer": turns + ((Turn(role="data", text=record.input),) if record.input.strip() else ())}


def score(record: Record, responses: Mapping[str, str], settings: Settings) -> Row:
    """One row: whether the answer is right, and the kind of task."""
    return {
        "accuracy": int(normalised(responses["answer"]) == normalised(record.output)),
        "kind": record.kind or "unnamed",
        "characters": len(responses["answer"]),
    }


def aggregate(rows: Sequence[Row], settings: Settings) -> dict[str, Metric]:
    """The accuracy over all tasks."""
    return metrics(rows, METRICS)


def breakdowns(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, dict[str, Metric]]]:
    """The accuracy by kind of task."""
    return {"kind": grouped(rows, lambda row: row["kind"], METRICS)}


def reported(rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """The mean length of the answers."""
    return {"mean_characters": sum(row["characters"] for row in rows) / len(rows)}


def normalised(text: str) -> str:
    """Collapse white space: the only difference from the right answer that is forgiven."""
    return " ".join(text.split())
