"""Marks and other keys beside the text of messages: taken over, refused by name, or told."""

from __future__ import annotations

import json
import logging

import datasets
import pytest

from bulwark.data.messages import LEARNED
from bulwark.data.readers import read_source
from bulwark.data.records import Conversation, Turn, read_records, write_records
from bulwark.errors import RecordError

ASK = {"role": "user", "content": "What is 2 + 2?"}


def read(tmp_path, *conversations, **options):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in conversations))
    return read_source(path, format=options.pop("format", "messages"), **options)


def chat(**beside):
    return {
        "messages": [ASK, {"role": "assistant", "content": "5", **beside}, ASK, {"role": "assistant", "content": "4"}]
    }


@pytest.mark.parametrize("mark", LEARNED)
@pytest.mark.parametrize(
    ("value", "learned"), [(0, False), (0.0, False), (False, False), (1, True), (True, True), (None, True)]
)
def test_a_mark_says_whether_an_answer_is_learned(tmp_path, caplog, mark, value, learned):
    (record,) = read(tmp_path, chat(**{mark: value}))
    assert [turn.learn for turn in record.turns] == [True, learned, True, True]
    assert [turn.text for turn in record.turns] == ["What is 2 + 2?", "5", "What is 2 + 2?", "4"]
    assert not caplog.records


def test_marks_of_sharegpt_and_of_parquet(tmp_path):
    told = {"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "5", "weight": 0}]}
    assert [turn.learn for turn in read(tmp_path, told)[0].turns] == [True, False]
    rows = [{"messages": [{**ASK, "weight": None}, {"role": "assistant", "content": "5", "weight": 0}]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "own.parquet")
    (record,) = read_source(tmp_path / "own.parquet", format="messages")
    assert [turn.learn for turn in record.turns] == [True, False]


@pytest.mark.parametrize(
    ("mark", "value"), [("weight", 0.5), ("weight", -1), ("train", "no"), ("loss", [0]), ("weight", "0")]
)
def test_a_mark_between_yes_and_no_is_refused(tmp_path, mark, value):
    with pytest.raises(RecordError, match=rf'line 1: messages\[1\] has "{mark}": .*write 0, 1, true or false'):
        read(tmp_path, chat(**{mark: value}))


def test_marks_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(RecordError, match="both that it is learned and that it is not"):
        read(tmp_path, chat(weight=0, train=True))
    assert read(tmp_path, chat(weight=0, train=False))[0].turns[1].learn is False


def test_keys_of_messages_that_are_left_out_are_told_as_columns_are(tmp_path, caplog):
    first, second = (
        chat(reasoning_content="two and two", name="tutor"),
        chat(thinking="hm", tool_calls=[], refusal=None),
    )
    with caplog.at_level(logging.WARNING):
        read(tmp_path, {**first, "source": "x"}, {**second, "level": 1}, chat(reasoning_content="three"))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith(
        "left out: messages.name (1 records), messages.reasoning_content (2 records), messages.thinking (1 records), "
        "source (1 records)"
    )


def test_the_marks_are_those_that_data_sets_use():
    others = {"trainable", "learn", "loss_mask", "loss_weight"}
    assert set(LEARNED) == {"weight", "train", "training", "loss"} | others


@pytest.mark.parametrize("value", [0, 0.0, False])
def test_a_key_that_is_not_known_is_told_also_where_it_says_no(tmp_path, caplog, value):
    """It may be a mark of a name that is not known, which says something just where it is false."""
    with caplog.at_level(logging.WARNING):
        (record,) = read(tmp_path, chat(use_for_loss=value))
    assert "left out: messages.use_for_loss (1 records)" in caplog.text
    assert all(turn.learn for turn in record.turns)


@pytest.mark.parametrize(("mark", "value"), [("weight", 0), ("trainable", False), ("loss_weight", 0.5)])
def test_a_mark_inside_a_piece_of_content_is_refused(tmp_path, mark, value):
    pieces = [{"type": "text", "text": "4", "weight": 1}, {"type": "text", "text": "!", mark: value}]
    with pytest.raises(RecordError, match=rf'line 1: messages\[1\] has "{mark}" in a piece of its content'):
        read(tmp_path, {"messages": [ASK, {"role": "assistant", "content": pieces}]})


def test_other_keys_of_pieces_are_told(tmp_path, caplog):
    piece = {"type": "text", "text": "4", "weight": 1, "citations": [], "annotations": None, "cache_control": {"a": 1}}
    with caplog.at_level(logging.WARNING):
        (record,) = read(tmp_path, {"messages": [ASK, {"role": "assistant", "content": [piece]}]})
    assert caplog.messages[0].endswith("left out: messages.content.cache_control (1 records)")
    assert record.turns[1] == Turn(role="response", text="4")


ANSWER = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASK, ANSWER], "conversations": [ANSWER]}, "different messages under messages and conversations"),
        ({"conversation": [ASK, ANSWER], "messages": []}, "different messages under messages and conversation"),
        ({"messages": [{**ASK, "value": "other"}, ANSWER]}, r'messages\[0\] has "content" and "value"'),
        ({"messages": [{**ASK, "value": ""}, ANSWER]}, r'messages\[0\] has "content" and "value"'),
        ({"messages": [{**ASK, "from": "tool"}, ANSWER]}, r'messages\[0\] has "role" and "from"'),
    ],
)
def test_a_record_that_says_two_things_is_refused(tmp_path, row, reason):
    with pytest.raises(RecordError, match=rf"line 1: ?.*{reason}"):
        read(tmp_path, row)


def test_what_is_said_twice_or_by_one_key_of_two_is_read(tmp_path):
    """As a Parquet file has null under the keys that its other rows use."""
    twice = {"messages": [{**ASK, "value": ASK["content"], "from": "user"}, ANSWER], "conversations": None}
    other = {
        "messages": None,
        "conversations": [{"role": None, "from": "human", "content": None, "value": "2?"}, ANSWER],
    }
    first, second = read(tmp_path, twice, other)
    assert [turn.text for turn in first.turns] == [ASK["content"], "4"]
    assert [turn.text for turn in second.turns] == ["2?", "4"]


def test_columns_of_alpaca_that_are_left_out_are_told(tmp_path, caplog):
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]], "system": "Be brief."}
    with caplog.at_level(logging.WARNING):
        read(tmp_path, row, format="alpaca")
    assert "left out: history (1 records), system (1 records)" in caplog.text


@pytest.mark.parametrize("content", [None, "", "  "])
def test_an_answer_that_is_a_call_only_is_refused_by_its_key(tmp_path, content):
    call = {"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "add"}}]}
    with pytest.raises(RecordError, match=r'messages\[1\] \(assistant\) is empty\. It has "tool_calls" instead'):
        read(tmp_path, {"messages": [ASK, call]})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text"},
        {"type": "image_url"},
        "text",
        {"type": "text", "text": 4},
    ],
)
def test_parts_that_are_not_text_are_refused(tmp_path, part):
    answer = {"role": "assistant", "content": [{"type": "text", "text": "4"}, part]}
    with pytest.raises(RecordError, match=r"messages\[1\] has content that is not text"):
        read(tmp_path, {"messages": [ASK, answer]})


def test_a_mark_survives_in_files_and_no_mark_adds_nothing(tmp_path):
    turns = (Turn(role="instruction", text="2?"), Turn(role="response", text="5", learn=False))
    write_records(tmp_path / "r.jsonl", [Conversation(id="0", turns=turns)])
    line = (tmp_path / "r.jsonl").read_text()
    assert json.loads(line)["turns"] == [
        {"role": "instruction", "text": "2?"},
        {"role": "response", "text": "5", "learn": False},
    ]
    assert read_records(tmp_path / "r.jsonl")[0].turns == turns
