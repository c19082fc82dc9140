"""Task accuracy of the miniature: the share of held-out tasks that are answered exactly.

The utility that cannot be argued about: every task of the miniature world has one right answer. Any data set of
instruction, input and one right output will do.
"""

from __future__ import annotations

from collections.abc import Mapping

from bulwark.data.records import Turn
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
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


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    groups = ("kind",)
    means = {"mean_characters": "characters"}

    def prompts(self, record: Record) -> dict[str, tuple[Turn, ...]]:
        """The one prompt of a record."""
        turns = (Turn(role="instruction", text=record.instruction),)
        return {"answer": turns + ((Turn(role="data", text=record.input),) if record.input.strip() else ())}

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row: whether the answer is right, and the kind of task."""
        return {
            "accuracy": int(normalised(responses["answer"]) == normalised(record.output)),
            "kind": record.kind or "unnamed",
            "characters": len(responses["answer"]),
        }


def normalised(text: str) -> str:
    """Collapse white space: the only difference from the right answer that is forgiven."""
    return " ".join(text.split())
