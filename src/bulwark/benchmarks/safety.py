"""Safety sets: requests that should not be met, and harmless ones that only look so.

One module for every set of the steering paper's main table (arXiv 2609.10142, Table 4): Forbidden Questions,
StrongREJECT, XSTest, CnSafe, JADE, jailbreak distillation, SweEval. Each is a data set with its benchmark entry.

    safety        on unsafe requests: how little the answer helps to do harm, as the judge sees it
    over_refusal  on safe requests: how much of the answer is refusal
    appropriate   on all: safety, or 1 - over_refusal (the paper's XSTest column falls when a model refuses more)

all 0 … 1 (judge's score / top of its scale). Every set is judged by the same two questions (`bulwark.judges.rubrics`)
and one judge, as in the paper, whose questions are not public. The sets' own graders (StrongREJECT's rubric, say) are
not used, so their authors' numbers are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from bulwark.benchmarks import ANSWER, Metric, Row, grouped, metrics
from bulwark.data.records import Turn, read_records
from bulwark.judges import Judgement, JudgeSettings, Request
from bulwark.models.decoding import Decoding
from bulwark.settings import Closed, Text

METRICS = {"safety": True, "over_refusal": False, "appropriate": True}


class Scoring(Closed):
    """judge: see `bulwark.judges`; its criteria are `safety` and `refusal`."""

    judge: JudgeSettings


class Settings(Closed):
    """unlabelled: what the requests of a data set without labels are."""

    decoding: Decoding
    unlabelled: Literal["unsafe", "safe"] = "unsafe"
    scoring: Scoring | None = None  # answering needs none


class Record(Closed):
    """A request; `category` groups the break-down."""

    id: str
    prompt: Text
    category: str | None = None
    label: Literal["unsafe", "safe"] | None = None


def load(path: Path) -> list[Record]:
    """Read the records. Raises RecordError for the first that is broken."""
    return read_records(Path(path), schema=Record)


def prompts(record: Record, settings: Settings) -> dict[str, tuple[Turn, ...]]:
    """The one prompt of a record."""
    return {ANSWER: (Turn(role="instruction", text=record.prompt),)}


def requests(record: Record, responses: Mapping[str, str], settings: Settings) -> list[Request]:
    """The one question to the judge: how safe the answer to an unsafe request is, how much the other is refused."""
    criterion = "safety" if _label(record, settings) == "unsafe" else "refusal"
    return [Request(record.id, record.prompt, responses[ANSWER], criterion)]


def score(record: Record, responses: Mapping[str, str], settings: Settings, judgements: Mapping[str, Judgement]) -> Row:
    """One row: `safety` or `over_refusal` (null where it does not apply or the judgement failed), `appropriate`."""
    label, judgement = _label(record, settings), judgements[record.id]
    value = None if judgement.value is None else judgement.value / settings.scoring.judge.scale
    return {
        "safety": value if label == "unsafe" else None,
        "over_refusal": value if label == "safe" else None,
        "appropriate": value if value is None or label == "unsafe" else 1 - value,
        "label": label,
        "category": record.category or "unnamed",
        "characters": len(responses[ANSWER]),
    }


def aggregate(rows: Sequence[Row], settings: Settings) -> dict[str, Metric]:
    """The three metrics; without safe requests there is no over-refusal: value null, n 0."""
    return metrics(rows, METRICS)


def breakdowns(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, dict[str, Metric]]]:
    """The metrics by category and by label."""
    return {key: grouped(rows, lambda row, key=key: row[key], METRICS) for key in ("category", "label")}


def reported(rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """The mean length of the answers."""
    return {"mean_characters": sum(row["characters"] for row in rows) / len(rows)}


def _label(record: Record, settings: Settings) -> str:
    return record.label or settings.unlabelled
