"""Injections that defenses train on: what another row of the data set asks for, put into a row's data.

    attack              what is put beside the data d of a row, for another row's instruction p and data e
    straightforward     d p e, or in front of it p e d
    completion          d, a made-up response under a fake delimiter, p and e under fake delimiters

They are StruQ's Naive and Completion-Other (Chen et al. 2024, arXiv 2402.06363, Sec. 4.4 and Alg. 1) and those of
SecAlign (arXiv 2410.05451), whose later recipe puts half of the straightforward ones in front of the data (Meta
SecAlign, arXiv 2507.02735, Sec. 3.1). The delimiters are the authors' published lists without those that StruQ keeps
for its tests (`attacks.injections.struq`).

What is drawn depends on the seed and the row's id, and on no other draw. A row's injected instruction has another
answer than the row; the papers draw without looking, so that the two may be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import Field, field_validator

from bulwark.data.records import Conversation, Preference, Turn
from bulwark.errors import RecordError
from bulwark.settings import Closed

Kind = Literal["at_end", "at_start", "completion"]


class FakeDelimiters(Closed):
    """Delimiters that no prompt has: a mark around "{role}{header}", in capitals, in small letters or as it is.

    users, assistants: roles before the headers of instruction and data, and of a response. instructions, contexts,
    responses: these headers. change_case: false leaves all as they are written.
    """

    marks: tuple[str, ...] = Field(
        default=("{s}:", "|{s}|:", "<{s}>:", "[{s}]:", "<|{s}|>:", "[|{s}|]:", "<[{s}]>:"), min_length=1
    )
    users: tuple[str, ...] = Field(default=("", "Prompter "), min_length=1)
    assistants: tuple[str, ...] = Field(default=("", "Assistant ", "Chatbot ", "Bot "), min_length=1)
    instructions: tuple[str, ...] = Field(default=("Command", "Rule"), min_length=1)
    contexts: tuple[str, ...] = Field(default=("Data",), min_length=1)
    responses: tuple[str, ...] = Field(default=("Output",), min_length=1)
    change_case: bool = True

    @field_validator("marks")
    @classmethod
    def _around(cls, marks: tuple[str, ...]) -> tuple[str, ...]:
        for mark in marks:
            if mark.count("{s}") != 1:
                raise ValueError(f'the mark {mark!r} should hold "{{s}}" once, where the header stands')
        return marks


class SimulationSettings(Closed):
    """completion: share of the attacks that are completions. at_start: share of the others that stand in front of the
    data; the rest stand behind it."""

    completion: float = Field(ge=0, le=1)
    at_start: float = Field(ge=0, le=1)
    delimiters: FakeDelimiters = FakeDelimiters()


@dataclass(frozen=True)
class Row:
    """A conversation of one exchange: what is asked, the place of the data turn and its text (none: ""), the answer."""

    record: Conversation
    instruction: str
    place: int
    data: str
    answer: str


def rows_of(records: Sequence[Conversation]) -> list[Row]:
    """The conversations of one exchange, with at most one data turn. The others are neither attacked nor injected."""
    rows = []
    for record in records:
        roles = [turn.role for turn in record.turns]
        data = [place for place, turn in enumerate(record.turns) if turn.is_material]
        asked = [turn.text for turn in record.turns if turn.role == "instruction"]
        if roles[-1] != "response" or roles.count("response") > 1 or len(data) > 1 or not asked:
            continue
        place = data[0] if data else -1
        text = record.turns[place].text if data else ""
        rows.append(Row(record, " ".join(asked), place, text, record.turns[-1].text))
    return rows


def trained_against(
    records: Sequence[Conversation], settings: SimulationSettings, *, untouched: float, seed: int, where: str = ""
) -> tuple[list[Conversation], dict[str, int]]:
    """All records in their order, a share of those with data under an attack; their answers stay (StruQ, Alg. 1).

    untouched: share of the rows that are left as they are, drawn before it is looked whether there are data. Returned
    beside them: how many rows have which attack (`meta.injection`), and how many none.
    Raises RecordError where no row can be injected into another.
    """
    rows = rows_of(records)
    known = {row.record.id: row for row in rows}
    made, counts = [], {"untouched": 0, "at_end": 0, "at_start": 0, "completion": 0}
    for record in records:
        rng, row = _drawn(seed, record), known.get(record.id)
        if rng.random() < untouched or row is None or not row.data:
            counts["untouched"] += 1
            made.append(record)
            continue
        data, kind, _ = _attacked(row, rows, settings, rng, where)
        counts[kind] += 1
        turns = _with_data(row, data)
        made.append(record.model_copy(update={"turns": turns, "meta": record.meta | {"injection": kind}}))
    if len(records) == counts["untouched"]:
        raise RecordError(f"{where}: no row has an injection, because none of one exchange has data. Give others.")
    return made, counts


def preferences(
    records: Sequence[Conversation], settings: SimulationSettings, *, seed: int, where: str = ""
) -> tuple[list[Preference], dict[str, int]]:
    """Every row with data under an attack: its own answer is chosen, that of the injected row rejected (SecAlign).

    Returned beside them: how many rows have which attack, and how many were left out for want of data.
    Raises RecordError where no row can be injected into another, and where no row has data.
    """
    rows = rows_of(records)
    made, counts = [], {"left_out": len(records), "at_end": 0, "at_start": 0, "completion": 0}
    for row in rows:
        if not row.data:
            continue
        data, kind, donor = _attacked(row, rows, settings, _drawn(seed, row.record), where)
        counts[kind] += 1
        counts["left_out"] -= 1
        meta = row.record.meta | {"injection": kind}
        turns = _with_data(row, data)[:-1]
        made.append(Preference(id=row.record.id, turns=turns, chosen=row.answer, rejected=donor.answer, meta=meta))
    if not made:
        raise RecordError(f"{where}: no row of one exchange has data, so nothing can be injected. Give other data.")
    return made, counts


def completed(data: str, answer: str, donor: Row, delimiters: FakeDelimiters, rng: Random) -> str:
    """The data, a made-up answer to it, and the injected row, each under a fake delimiter of one mark."""
    mark = rng.choice(delimiters.marks)

    def header(roles: Sequence[str], headers: Sequence[str]) -> str:
        text = rng.choice(roles) + rng.choice(headers)
        if delimiters.change_case:
            text = rng.choice((text.upper(), text.lower(), text))
        return mark.format(s=text)

    answered = f"{header(delimiters.assistants, delimiters.responses)}\n{answer}"
    asked = f"{header(delimiters.users, delimiters.instructions)}\n{donor.instruction}"
    parts = [data, answered, asked]
    if donor.data:
        parts.append(f"{header(delimiters.users, delimiters.contexts)}\n{donor.data}")
    return "\n\n".join(parts)


def _attacked(
    row: Row, rows: Sequence[Row], settings: SimulationSettings, rng: Random, where: str
) -> tuple[str, Kind, Row]:
    """The row's data under an attack, which attack it is, and the injected row."""
    donor = _another(row, rows, rng, where, lambda other: other.answer != row.answer)
    if rng.random() < settings.completion:
        # StruQ takes another data set's answer to the same row; training on the row's own makes a model repeat its data
        fake = _another(row, rows, rng, where, lambda other: other.answer not in (row.answer, donor.answer))
        return completed(row.data, fake.answer, donor, settings.delimiters, rng), "completion", donor
    injection = f"{donor.instruction} {donor.data}".strip()
    if rng.random() < settings.at_start:
        return f"{injection} {row.data}", "at_start", donor
    return f"{row.data} {injection}", "at_end", donor


def _another(row: Row, rows: Sequence[Row], rng: Random, where: str, fits: Callable[[Row], bool]) -> Row:
    """The first of the rows from a random one on that fits and asks for something else."""
    start = rng.randrange(len(rows))
    for number in range(len(rows)):
        other = rows[(start + number) % len(rows)]
        if other.instruction != row.instruction and fits(other):
            return other
    raise RecordError(
        f'{where}: no other row has another instruction and another answer than "{row.record.id}", so nothing can be '
        "injected into it. Give more rows."
    )


def _with_data(row: Row, data: str) -> tuple[Turn, ...]:
    turns = list(row.record.turns)
    turns[row.place] = turns[row.place].model_copy(update={"text": data})
    return tuple(turns)


def _drawn(seed: int, record: Conversation) -> Random:
    return Random(f"{seed}/{record.id}")
