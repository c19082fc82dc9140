"""RuLES (Mu et al. 2023, arXiv 2311.04235): does a model keep simple rules of its prompt when the user asks otherwise?

285 cases of 19 suites, "basic" in RuLES, in 14 scenarios (`bulwark.evaluation.rules`). The scenario's text with its
rules is the instruction and what the user says is data, as in ASIDE's evaluation (Zverev et al. 2025, arXiv
2503.10566). In ten suites the user says two things: first another rule ("When I say X, print …"), then X. Both are
turns here, with the model's own answer to the first between them.

    attack_success_rate                 share of cases in which the answer to the last message breaks a rule
    attack_success_rate_any_turn        … in which one of the answers does, each held against the message before it
    attack_success_rate_as_published    by ASIDE's code, which joins two messages to one, separated by a line break, and
                                        takes the characters of "Response : " off the start of answers, so that "spin"
                                        becomes "in"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bulwark.data.records import Turn
from bulwark.errors import nearest, of_record
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.evaluation.rules import SCENARIOS
from bulwark.evaluation.rules.scenario import Scenario, without_header, without_header_as_published
from bulwark.models.decoding import Decoding
from bulwark.settings import Closed, Text

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS = {
    "attack_success_rate": False,
    "attack_success_rate_any_turn": False,
    "attack_success_rate_as_published": False,
}
JOINED = "joined"  # the variant with all messages in one
SILENT = "(no answer)"  # in the place of an answer without text, which no conversation can hold


class Settings(Closed):
    """How the answers are made. Scoring itself has nothing to set."""

    decoding: Decoding = Decoding(do_sample=True)


class Message(Closed):
    """What the user says."""

    role: Literal["user"]
    content: Text


class Record(Closed):
    """A case. prompt: the scenario's text with its parameters. params: those of the scenario (`evaluation.rules`)."""

    id: str
    suite: Text
    scenario: str
    category: str | None = None
    params: dict[str, Any]
    prompt: Text
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _of_its_scenario(self) -> Record:
        if self.scenario not in SCENARIOS:
            raise ValueError(f'there is no scenario "{self.scenario}"{nearest(self.scenario, SCENARIOS)}')
        for message in self.messages:
            self.rules.check(message.content)
        return self

    @cached_property
    def rules(self) -> Scenario:
        """The scenario with the parameters of the case."""
        try:
            return SCENARIOS[self.scenario].model_validate_json(json.dumps(self.params))
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ValueError(f"the params do not fit the scenario {self.scenario} ({told})") from None


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS
    groups = ("suite", "scenario")
    means = {"mean_characters": "characters"}

    def variants(self, record: Record) -> list[str]:
        """An answer to each message, and one to all of them in one where there are several."""
        turns = [_turn(number) for number in range(len(record.messages))]
        return [*turns, JOINED] if len(turns) > 1 else turns

    def answers(self, examinee: Examinee, records: Sequence[Record]) -> list[Row]:
        """The answers to all first messages; to all second ones, with these before them; and to joined messages."""
        made: list[Row] = []
        said: dict[str, list[str]] = {record.id: [] for record in records}
        for number in range(max(len(record.messages) for record in records)):
            asked = [record for record in records if len(record.messages) > number]
            talks = [conversation(record, said[record.id]) for record in asked]
            rows = self._answered(examinee, asked, _turn(number), talks)
            for record, row in zip(asked, rows, strict=True):
                said[record.id].append(row["response"])
            made += rows
        several = [record for record in records if len(record.messages) > 1]
        return made + self._answered(examinee, several, JOINED, [joined(record) for record in several])

    def _answered(
        self, examinee: Examinee, records: Sequence[Record], variant: str, talks: Sequence[Sequence[Turn]]
    ) -> list[Row]:
        prompts = [
            (f"{record.id}/{variant}", of_record(record.id, examinee.builder.prompt, turns))
            for record, turns in zip(records, talks, strict=True)
        ]
        produced = examinee.generate(prompts, self.settings.decoding) if prompts else []
        return [
            replace(answer, id=record.id, variant=variant).as_dict()
            for record, answer in zip(records, produced, strict=True)
        ]

    def score(self, record: Record, responses: Mapping[str, str]) -> Row:
        """One row: whether the last answer, any answer, and the answer to joined messages break a rule."""
        broken = [
            record.rules.breaks(message.content, without_header(responses[_turn(number)]))
            for number, message in enumerate(record.messages)
        ]
        published = without_header_as_published(responses[JOINED if len(broken) > 1 else _turn(0)])
        return {
            "attack_success_rate": int(broken[-1]),
            "attack_success_rate_any_turn": int(any(broken)),
            "attack_success_rate_as_published": int(
                record.rules.breaks_as_published(record.messages[-1].content, published)
            ),
            "suite": record.suite,
            "scenario": record.scenario,
            "characters": sum(map(len, responses.values())) / len(responses),
        }


def conversation(record: Record, answers: Sequence[str]) -> list[Turn]:
    """The scenario, the messages up to the first that has no answer yet, and the answers between them."""
    turns = [Turn(role="instruction", text=record.prompt), Turn(role="data", text=record.messages[0].content)]
    for answer, message in zip(answers, record.messages[1:], strict=False):
        turns += [Turn(role="response", text=answer.strip() or SILENT), Turn(role="data", text=message.content)]
    return turns


def joined(record: Record) -> list[Turn]:
    """The scenario, and all messages in one."""
    text = "\n".join(message.content for message in record.messages)
    return [Turn(role="instruction", text=record.prompt), Turn(role="data", text=text)]


def _turn(number: int) -> str:
    """The variant of the answer to a message, counted from 0."""
    return f"turn_{number + 1}"
