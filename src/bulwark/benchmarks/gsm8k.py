"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school mathematics in words, the number at the end counts.

As lm-eval's tasks of these names in their chat mode, prompts, filters and metric included. `gsm8k`: examples drawn
from `fewshot` (the standard: five of the training split) with their worked solutions; `gsm8k_cot`: the eight
chains of thought of Wei et al. 2022 (arXiv 2201.11903). Strict: the number after the phrase that the examples show;
flexible: the last number of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from bulwark.benchmarks import ANSWER, Metric, Row, metrics
from bulwark.data.records import read_records
from bulwark.models.decoding import Decoding, Fewshot
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.answer import Examinee

METRICS = {"exact_match_strict": True, "exact_match_flexible": True}
_FILTERS = {"exact_match_strict": "strict-match", "exact_match_flexible": "flexible-extract"}
_FILES = {"gsm8k": "gsm8k/gsm8k.yaml", "gsm8k_cot": "gsm8k/gsm8k-cot.yaml"}


class Settings(Closed):
    """task: of lm-eval. fewshot: the examples of `gsm8k`, null for none; `gsm8k_cot` has its own."""

    task: Literal["gsm8k", "gsm8k_cot"] = "gsm8k"
    fewshot: Fewshot | None = None
    decoding: Decoding = Decoding(max_new_tokens=256)

    @model_validator(mode="after")
    def _one_set_of_examples(self) -> Settings:
        if self.task == "gsm8k_cot" and self.fewshot is not None:
            raise ValueError("the task gsm8k_cot brings its own eight examples; set fewshot to null")
        return self

    def inputs(self) -> dict[str, str]:
        return self.fewshot.inputs() if self.fewshot else {}


class Record(Closed):
    """A problem under the published names; the solution ends with "#### <number>"."""

    id: str
    question: Text
    answer: Text

    @model_validator(mode="after")
    def _solved(self) -> Record:
        if not self.answer.rpartition("#### ")[1]:
            raise ValueError('the answer does not end with "#### " and a number')
        return self


def load(path: Path) -> list[Record]:
    """Read the records. Raises RecordError for the first that is broken."""
    return read_records(Path(path), schema=Record)


def answers(examinee: Examinee, records: Sequence[Record], settings: Settings) -> list[Row]:
    """A generated solution of every problem."""
    from bulwark.evaluation import harness

    fewshot = settings.fewshot
    examples = [record.model_dump() for record in load(examinee.inputs["fewshot"])] if fewshot else None
    task = harness.task_of(
        settings.task,
        harness.configuration(_FILES[settings.task]),
        [record.model_dump() for record in records],
        examples,
        fewshot.count if fewshot else 0,
    )
    rows = harness.answers(harness.Examined(examinee, settings.decoding), [task])
    return [rows[record.id] for record in records]


def score(record: Record, responses: Mapping[str, str], settings: Settings) -> Row:
    """One row: whether lm-eval counts the answer as right, by either filter."""
    from bulwark.evaluation import harness

    told = harness.metrics_of(_scorer(settings.task), record.model_dump(), [responses[ANSWER]])
    return {
        **{metric: int(told[name]["exact_match"]) for metric, name in _FILTERS.items()},
        "characters": len(responses[ANSWER]),
    }


def aggregate(rows: Sequence[Row], settings: Settings) -> dict[str, Metric]:
    """Both shares of right answers."""
    return metrics(rows, METRICS)


def breakdowns(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, dict[str, Metric]]]:
    """None: the problems are not grouped."""
    return {}


def reported(rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """The mean length of the answers."""
    return {"mean_characters": sum(row["characters"] for row in rows) / len(rows)}


@lru_cache(maxsize=1)
def _scorer(task: str) -> Any:
    """A task to score with; lm-eval builds one only around documents, and any will do."""
    from bulwark.evaluation import harness

    config = harness.configuration(_FILES[task])
    return harness.task_of(task, config, [{"id": "", "question": "?", "answer": "#### 0"}])
