"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school mathematics in words, the number at the end counts.

As lm-eval's tasks of these names in their chat mode, prompts, filters and metric included. `gsm8k`: examples drawn
from `fewshot` (the standard: five of the training split) with their worked solutions; `gsm8k_cot`: the eight
chains of thought of Wei et al. 2022 (arXiv 2201.11903). Strict: the number after the phrase that the examples show;
flexible: the last number of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.models.answers import ANSWER
from bulwark.models.decoding import Decoding, Fewshot
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS = {"exact_match_strict": True, "exact_match_flexible": True}
_FILTERS = {"exact_match_strict": "strict-match", "exact_match_flexible": "flexible-extract"}
_FILES = {"gsm8k": "gsm8k/gsm8k.yaml", "gsm8k_cot": "gsm8k/gsm8k-cot.yaml"}
# lm-eval compares texts, less commas and dollar signs: only a number as an answer gives it can be met (18, not 18.0).
_GOLD = re.compile(r"#### +([-$]{0,2}[0-9][0-9,]*(\.[0-9]*[1-9][0-9]*)?)")


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


class Record(Closed):
    """A problem under the published names; the solution ends with "#### <number>"."""

    id: str
    question: Text
    answer: Text

    @model_validator(mode="after")
    def _solved(self) -> Record:
        if self._number() is None:
            raise ValueError(
                'the answer does not end with "#### " and a number, such as "#### 18": no unit, no sign of percent or '
                "emphasis, no empty decimals"
            )
        return self

    def _number(self) -> str | None:
        """What stands after the last "#### ", if it is a number that an answer can equal."""
        found = _GOLD.fullmatch("".join(self.answer.rpartition("#### ")[1:]).strip())
        return found and found.group(1)

    def document(self) -> dict[str, Any]:
        """The record to score by: white space around the number counts for nothing."""
        return {**self.model_dump(), "answer": f"#### {self._number()}"}


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    means = {"mean_characters": "characters"}

    def answers(self, examinee: Examinee, records: Sequence[Record]) -> list[Row]:
        """A generated solution of every problem."""
        from bulwark.evaluation import harness

        fewshot = self.settings.fewshot
        examples = [record.model_dump() for record in self.load(examinee.inputs["fewshot"])] if fewshot else None
        task = harness.task_of(
            self.settings.task,
            harness.configuration(_FILES[self.settings.task]),
            [record.model_dump() for record in records],
            examples,
            fewshot.count if fewshot else 0,
            f"{examinee.inputs['fewshot']}" if fewshot else "",
        )
        rows = harness.answers(harness.Examined(examinee, self.settings.decoding), [task])
        return [rows[record.id] for record in records]

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row: whether lm-eval counts the answer as right, by either filter."""
        from bulwark.evaluation import harness

        counted = harness.metrics_of(_scorer(self.settings.task), record.document(), [responses[ANSWER]])
        return {
            **{metric: int(counted[name]["exact_match"]) for metric, name in _FILTERS.items()},
            "characters": len(responses[ANSWER]),
        }


@lru_cache(maxsize=1)
def _scorer(task: str) -> Any:
    """A task to score with; lm-eval builds one only around documents, and any will do."""
    from bulwark.evaluation import harness

    config = harness.configuration(_FILES[task])
    return harness.task_of(task, config, [{"id": "", "question": "?", "answer": "#### 0"}])
