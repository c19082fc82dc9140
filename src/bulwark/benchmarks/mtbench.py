"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): 80 questions with a second turn, each answer graded from 1 to 10.

Single-answer grading: a language model as judge sees the conversation and grades its last answer; where the record has
a reference answer, it is shown to the judge. The second turn is asked with the model's own first answer before it. Our
judges give 0 to the top of their scale, which is laid on 1 to 10. The questions to the judge are our own.

    score             mean of the two turns
    turn_1, turn_2    of each of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.data.records import Turn
from bulwark.errors import of_record
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.judges import Judged, Judgement, Request
from bulwark.models.decoding import Decoding
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS = {"score": True, "turn_1": True, "turn_2": True}
CRITERION = "quality"
VARIANTS = ("turn_1", "turn_2")
SILENT = "(no answer)"  # in the place of an answer without text, which no conversation can hold


class Settings(Closed):
    """How the answers are made, and who grades them."""

    decoding: Decoding = Decoding(max_new_tokens=1024)
    scoring: Judged | None = None  # answering needs none


class Record(Closed):
    """A question and what is asked after its answer. reference: right answers, one per turn, where there are any."""

    id: str
    prompt: tuple[Text, Text]
    category: str | None = None
    reference: tuple[str, ...] | None = Field(None, max_length=2)


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    groups = ("category",)

    def variants(self, record: Record) -> list[str]:
        """A record is answered twice."""
        return list(VARIANTS)

    def answers(self, examinee: Examinee, records: Sequence[Record]) -> list[Row]:
        """The answers to all first turns, then, with these before them, to all second ones."""
        first = self._answered(examinee, records, "turn_1", [conversation(record) for record in records])
        given = [conversation(record, row["response"]) for record, row in zip(records, first, strict=True)]
        return first + self._answered(examinee, records, "turn_2", given)

    def _answered(
        self, examinee: Examinee, records: Sequence[Record], variant: str, conversations: Sequence[Sequence[Turn]]
    ) -> list[Row]:
        prompts = [
            (f"{record.id}/{variant}", of_record(record.id, examinee.builder.prompt, turns))
            for record, turns in zip(records, conversations, strict=True)
        ]
        produced = examinee.generate(prompts, self.settings.decoding)
        return [
            replace(answer, id=record.id, variant=variant).as_dict()
            for record, answer in zip(records, produced, strict=True)
        ]

    def requests(self, record: Record, responses: Mapping[str, str]) -> list[Request]:
        """One question per turn; that on the second shows the first and its answer."""
        talks = (conversation(record), conversation(record, responses["turn_1"]))
        return [
            Request(variant, _shown(record, number, turns), responses[variant], CRITERION)
            for number, (variant, turns) in enumerate(zip(VARIANTS, talks, strict=True))
        ]

    def score(self, record: Record, responses: Mapping[str, str], judgements: Mapping[str, Judgement]) -> Row:
        """One row of grades from 1 to 10; null where the judgement failed."""
        top = self.settings.scoring.judge.scale
        grades = {
            variant: None if judgements[variant].value is None else 1 + 9 * judgements[variant].value / top
            for variant in VARIANTS
        }
        known = [grade for grade in grades.values() if grade is not None]
        whole = sum(known) / 2 if len(known) == 2 else None
        return {"score": whole, **grades, "category": record.category or "unnamed"}

    def reported(self, rows: Sequence[Row]) -> dict[str, int]:
        """How many records have no score, because a judgement failed."""
        return {"without_score": sum(row["score"] is None for row in rows)}


def conversation(record: Record, first_answer: str | None = None) -> list[Turn]:
    """The first question alone, or with an answer and the second question."""
    asked = [Turn(role="instruction", text=text) for text in record.prompt]
    if first_answer is None:
        return asked[:1]
    return [asked[0], Turn(role="response", text=first_answer.strip() or SILENT), asked[1]]


def _shown(record: Record, number: int, turns: Sequence[Turn]) -> str:
    """The conversation up to a turn as one text, with the reference answer to it."""
    said = [f"{'Assistant' if turn.role == 'response' else 'User'}: {turn.text}" for turn in turns]
    text = said[0].removeprefix("User: ") if len(said) == 1 else "\n\n".join(said)
    right = (record.reference or ())[number : number + 1]
    if right and right[0].strip():
        text += f"\n\n[a right answer, for comparison]\n{right[0].strip()}"
    return text
