"""Records: what is accepted, and what each broken file is told."""

from __future__ import annotations

import json
import os

import pytest

from bulwark.data.records import Conversation, Turn, read_records, role_numbers, write_records
from bulwark.errors import RecordError
from bulwark.settings import Closed

GOOD = {"id": "1", "turns": [{"role": "instruction", "text": "Add."}, {"role": "data", "text": "1 2"}]}


class Question(Closed):
    id: int
    question: str
    choices: tuple[str, ...]


def conversation(identity: str) -> Conversation:
    return Conversation(id=identity, turns=(Turn(role="instruction", text="Say é\u2028 now."),), meta={"n": 1})


def test_round_trip_keeps_every_field(tmp_path):
    path = tmp_path / "deep" / "train.jsonl"
    records = [conversation("a"), conversation("b")]
    write_records(path, records)
    assert read_records(path) == records
    assert path.read_bytes().count(b"\n") == 2


def test_another_schema_with_a_tuple(tmp_path):
    path = tmp_path / "questions.jsonl"
    write_records(path, [{"id": 0, "question": "Which?", "choices": ["a", "b"]}])
    assert read_records(path, Question) == [Question(id=0, question="Which?", choices=("a", "b"))]


def test_roles_are_counted_in_the_models_order_and_others_stand_in_for_those_that_it_lacks():
    assert role_numbers() == {"response": 0, "instruction": 1, "system": 1, "data": 2, "tool": 2}
    four = ("system", "instruction", "tool", "data")
    assert role_numbers(four) == {"response": 0, "system": 1, "instruction": 2, "tool": 3, "data": 4}
    assert role_numbers(("data", "tool", "instruction")) == {
        "response": 0, "data": 1, "tool": 2, "instruction": 3, "system": 3,
    }  # fmt: skip
    assert [Turn(role=role, text="x").is_material for role in ("system", "instruction", "tool", "data")] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"id": "2"}, '"turns" is missing'),
        ({**GOOD, "id": 2}, '"id" should be a valid string, not 2'),
        ({**GOOD, "id": "2", "turn": []}, 'Did you mean "turns"?'),
        ({"id": "2", "turns": []}, "at least one turn"),
        ({"id": "2", "turns": [{"role": "data", "text": " \n"}]}, '"turns.0.text": the text is empty'),
        ({"id": "2", "turns": [{"role": "user", "text": "x"}]}, '"turns.0.role" should be'),
        ({"id": "2", "turns": [{"role": "data", "text": 3}]}, '"turns.0.text" should be a valid string, not 3'),
        (GOOD, 'duplicate id "1", first at'),
        (b'{"id": "2", "turns": ', "not valid JSON"),
        (b'["a"]', "the record should be an object"),
        (b'{"id": "\xff"}', "not valid UTF-8 (byte 9 of the line, 0xff)"),
        (b"  ", "the line is blank"),
    ],
)
def test_a_broken_record_is_named_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + raw + b"\n")
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert reason in str(caught.value)


def test_empty_and_missing_files_are_errors(tmp_path):
    path = tmp_path / "train.jsonl"
    with pytest.raises(RecordError, match="does not exist"):
        read_records(path)
    path.write_bytes(b"")
    with pytest.raises(RecordError, match="holds no record"):
        read_records(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "train.jsonl"
    write_records(path, [conversation("a")])

    def broken():
        yield conversation("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, broken())
    assert [record.id for record in read_records(path)] == ["a"]
    assert os.listdir(tmp_path) == ["train.jsonl"]
