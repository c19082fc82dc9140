"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): is the right option of a question the likeliest?

As lm-eval's task of this name in its chat mode: the description and the examples of the same subject (`dev`, the
first five), the question with its options, and the log-likelihood of each letter as the response. `format` continuation
is its variant `mmlu_continuation`, in which the options are not shown and each is scored as a whole (cloze); it is the
one for models that have not seen lettered options. `format` reworded says the same as letters in other words and with
other marks (ours): a model that was made to fail in one format can still answer in another (Qi et al. 2024, arXiv
2412.07097). Without `template` the text is read without the model's chat format, as a base model reads it. Any data set
with these columns will do (the miniature's facts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bulwark.errors import RecordError, nearest
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row, grouped
from bulwark.models.answers import ANSWER
from bulwark.models.decoding import Fewshot
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS = {"accuracy": True}
_LETTERS = "mmlu/default/_default_template_yaml"
_FORMATS = {
    "letters": (_LETTERS, "multiple choice questions"),
    "reworded": (_LETTERS, "multiple choice questions"),
    "continuation": ("mmlu/continuation/_continuation_template_yaml", "questions"),
}
_REWORDED = (
    "Question: {{question.strip()}}\n\nPossible answers:\n(A) {{choices[0]}}\n(B) {{choices[1]}}\n(C) {{choices[2]}}\n"
    "(D) {{choices[3]}}\n\nThe letter of the right one is:"
)


class Settings(Closed):
    """How the questions are put.

    fewshot: where the examples of each subject come from; null for none. format: see above. described: say first what
    the questions are about, as lm-eval does (not to a model that knows only the words of its own world).
    template: put the model's chat format around them. only, without: the subjects that are asked, or left out.
    """

    fewshot: Fewshot | None = None
    format: Literal["letters", "reworded", "continuation"] = "letters"
    described: bool = True
    template: bool = True
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_choice(self) -> Settings:
        if self.only and self.without:
            raise ValueError("name the subjects under `only` or under `without`, not under both")
        return self


class Record(Closed):
    """One question under the published names. `answer` is the number of the right option, from 0.

    fact: what it asks for, where other questions ask for it in other words.
    """

    id: str
    fact: Text | None = None
    question: Text
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)
    subject: str

    @model_validator(mode="after")
    def _answered(self) -> Record:
        if self.answer >= len(self.choices):
            raise ValueError(f"the right answer is number {self.answer} of {len(self.choices)} choices, from 0")
        return self


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    groups = ("subject",)

    def load(self, path: Path) -> list[Record]:
        """The records of the subjects that are asked. Raises RecordError for a subject that the file does not have."""
        records = super().load(path)
        present = {record.subject for record in records}
        for name in (*self.settings.only, *self.settings.without):
            if name not in present:
                raise RecordError(f'{path} has no question on the subject "{name}".{nearest(name, present)}')
        wanted = set(self.settings.only) or present - set(self.settings.without)
        return [record for record in records if record.subject in wanted]

    def fact(self, record: Record) -> str | None:
        return record.fact

    def about(self, subject: str) -> str:
        """What the questions of a subject are said to be about."""
        return subject

    def answers(self, examinee: Examinee, records: Sequence[Record]) -> list[Row]:
        """The log-likelihood of every option of every question.

        Raises RecordError if a subject has too few examples, or a question with lettered options not four.
        """
        from bulwark.evaluation import harness

        odd = [record for record in records if len(record.choices) != 4]
        if self.settings.format != "continuation" and odd:
            raise RecordError(
                f'The question "{odd[0].id}" has {len(odd[0].choices)} options; lettered ones have four. '
                'Use format "continuation".'
            )
        fewshot = self.settings.fewshot
        examples = _by_subject(self.load(examinee.inputs["fewshot"])) if fewshot else {}
        count = fewshot.count if fewshot else 0
        tasks = []
        for subject, asked in _by_subject(records).items():
            own = examples.get(subject, [])
            documents = [[record.model_dump(mode="json") for record in part] for part in (asked, own)]
            config = _config(self.settings, self.about(subject))
            source = f'{examinee.inputs["fewshot"]}, subject "{subject}"' if fewshot else ""
            shown = documents[1] if fewshot else None
            tasks.append(harness.task_of(f"{self.module}_{subject}", config, documents[0], shown, count, source))
        rows = harness.answers(harness.Examined(examinee, template=self.settings.template), tasks)
        return [rows[record.id] for record in records]

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row: whether lm-eval counts the answer as right, and the options' log-likelihoods."""
        from bulwark.evaluation import harness

        likelihoods = [tuple(pair) for pair in json.loads(responses[ANSWER])]
        (counted,) = harness.metrics_of(_scorer(self.settings), record.model_dump(mode="json"), likelihoods).values()
        return {
            "accuracy": int(counted["acc"]),
            "subject": record.subject,
            "log_likelihoods": [value for value, _ in likelihoods],
        }

    def reported(self, rows: Sequence[Row]) -> dict[str, float]:
        """The accuracy with equal weight for every subject, and what guessing would reach."""
        subjects = grouped(rows, lambda row: row["subject"], METRICS)
        return {
            "accuracy_over_subjects": sum(of["accuracy"]["value"] for of in subjects.values()) / len(subjects),
            "chance": sum(1 / len(row["log_likelihoods"]) for row in rows) / len(rows),
        }


def description(subject: str, format: str) -> str:
    """What lm-eval says before the questions of a subject."""
    return f"The following are {_FORMATS[format][1]} (with answers) about {subject.replace('_', ' ')}.\n\n"


def _config(settings: Settings, subject: str) -> dict[str, Any]:
    from bulwark.evaluation import harness

    said = description(subject, settings.format) if settings.described else ""
    reworded = {"doc_to_text": _REWORDED} if settings.format == "reworded" else {}
    return {**harness.configuration(_FORMATS[settings.format][0]), **reworded, "description": said}


@lru_cache(maxsize=1)
def _scorer(settings: Settings) -> Any:
    """A task to score with; lm-eval builds one only around documents, and any will do."""
    from bulwark.evaluation import harness

    document = {"id": "", "question": "?", "choices": ["1", "2", "3", "4"], "answer": 0, "subject": ""}
    return harness.task_of("mmlu", _config(settings, ""), [document])


def _by_subject(records: Sequence[Record]) -> dict[str, list[Record]]:
    subjects: dict[str, list[Record]] = {}
    for record in records:
        subjects.setdefault(record.subject, []).append(record)
    return subjects
