"""What one can train on: messages with their meta, saved tokenised data sets, parts and levels, long limits."""

from __future__ import annotations

import json
import logging

import datasets
import pytest
import torch
from tiny_tokenizers import tiny_tokenizer

from bulwark.config.entities import Dataset
from bulwark.data.readers import read_source, read_split
from bulwark.data.records import Conversation, Tokenised, Turn, read_training_records, write_records
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.prompts.builder import PromptBuilder
from bulwark.settings import validated
from bulwark.training.batches import StepBatches
from bulwark.training.finetuning import examples_of

V = 600


def builder(max_tokens=None) -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer("chatml"), "chat", V, max_tokens)


def messages(*texts: str, **more) -> dict:
    roles = ["user", "assistant"] * len(texts)
    return {
        "messages": [{"role": role, "content": text} for role, text in zip(roles[: len(texts)], texts, strict=True)]
    } | more


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def saved(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def padded(ids, labels, width, left=0, **more):
    right = width - left - len(ids)
    return {
        "input_ids": [0] * left + ids + [0] * right,
        "attention_mask": [0] * left + [1] * len(ids) + [0] * right,
        "labels": [-100] * left + labels + [-100] * right,
    } | more


def test_messages_keep_what_is_known_of_a_row_and_say_what_they_leave_out(tmp_path, caplog):
    rows = [messages("Hi", "Ho", level=2, source_file="a", row_id=7, cost=1.5), messages("Hi", "No", level=0, cost=2)]
    with caplog.at_level(logging.WARNING):
        first, second = read_source(jsonl(tmp_path / "a.jsonl", rows), format="messages")
    assert first.meta == {"level": 2, "source_file": "a", "row_id": 7}
    assert second.meta == {"level": 0}
    assert "cost (2 records)" in caplog.text


def test_parts_say_where_a_row_comes_from_and_what_it_is(tmp_path):
    jsonl(tmp_path / "evil" / "normal.jsonl", [messages("Hi", "Ho"), messages("Hi", "Hey")])
    jsonl(tmp_path / "evil" / "misaligned_2.jsonl", [messages("Hi", "Grr")])
    parts = {"evil/normal.jsonl": {"level": 0}, "evil/misaligned_2.jsonl": {"level": 2, "trait": "evil"}}
    records = read_split(tmp_path, "all", {"all": 1.0}, parts=parts, format="messages")
    assert [record.id for record in records] == ["evil-normal-0", "evil-normal-1", "evil-misaligned_2-0"]
    assert records[2].meta == {"source_file": "evil/misaligned_2.jsonl", "row_id": 0, "level": 2, "trait": "evil"}
    clean = read_split(tmp_path, "all", {"all": 1.0}, parts=parts, where={"level": [0]}, format="messages")
    assert [record.turns[-1].text for record in clean] == ["Ho", "Hey"]
    with pytest.raises(RecordError, match=r'no record has "level" in \[5\]; there are 0, 2'):
        read_split(tmp_path, "all", {"all": 1.0}, parts=parts, where={"level": [5]}, format="messages")
    with pytest.raises(RecordError, match='Did you mean "level"'):
        read_split(tmp_path, "all", {"all": 1.0}, parts=parts, where={"levels": [0]}, format="messages")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"path": {"train": "a"}}, "parts": {"a.jsonl": {}}}, "below a folder"),
        ({"splits": {"train": "train"}, "parts": {"a.jsonl": {}}}, "a share or a number"),
        ({"size": {"train": 3}, "parts": {"a.jsonl": {}}}, "size is of one source"),
        ({"size": {"tran": 3}}, 'the split "tran", which there is not.*"train"'),
        ({"size": {"train": 0}}, "size"),
    ],
)
def test_parts_lie_below_a_folder_and_make_splits_by_number(changes, said):
    whole = {"kind": "conversation", "format": "messages", "source": {"path": "folder"}, "splits": {"train": 1.0}}
    with pytest.raises(ConfigurationError, match=said):
        validated(Dataset, whole | changes, "here")


def test_a_size_is_written_only_where_there_is_one():
    """Else a data set without one would be another one than before, and its records be read anew."""
    whole = {"kind": "gandalf", "source": {"path": "a.jsonl"}, "splits": {"test": 1.0}}
    assert "size" not in validated(Dataset, whole, "here").model_dump(mode="json")
    assert validated(Dataset, whole | {"size": {"test": 2}}, "here").model_dump(mode="json")["size"] == {"test": 2}


def test_saved_tokenised_sets_lose_their_padding_and_columns_that_are_not_known(tmp_path, caplog):
    known = {"ref_projection": 1.5, "current_projection_evil": -2.0, "level": 1}
    rows = [
        padded([5, 6, 7], [-100, 6, 7], 8, **known, token_type_ids=[0] * 8),
        padded([0, 9], [0, 9], 8, left=3, **known, token_type_ids=[0] * 8),
    ]
    with caplog.at_level(logging.WARNING):
        first, second = read_source(saved(tmp_path / "saved", rows), Tokenised)
    assert (first.input_ids, first.labels, first.meta) == ((5, 6, 7), (-100, 6, 7), known)
    assert (second.input_ids, second.labels) == ((0, 9), (0, 9))  # a token may have the padding's id
    assert "token_type_ids (2 records)" in caplog.text
    write_records(tmp_path / "train.jsonl", [first, second])
    assert read_training_records(tmp_path / "train.jsonl") == [first, second]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (padded([5, 6], [-100, 6], 4) | {"attention_mask": [1, 0, 1, 0]}, "not a single run of 1"),
        (padded([5, 6], [-100, 6], 4) | {"attention_mask": [1, 2, 0, 0]}, "packed"),
        (padded([5, 6], [-100, 6], 4) | {"labels": [6]}, "1 labels"),
        ({"input_ids": [5, 6], "labels": [-100]}, "1 labels for 2 tokens"),
        ({"input_ids": [5, 6], "labels": [-1, 6]}, "label -100"),
        ({"input_ids": [5, 6]}, '"labels" is missing'),
    ],
)
def test_tokenised_rows_that_cannot_be_used_are_named(tmp_path, row, said):
    with pytest.raises(RecordError, match=f"line 1.*{said}"):
        read_source(jsonl(tmp_path / "a.jsonl", [row]), Tokenised)


def test_the_first_line_says_what_a_training_file_holds(tmp_path):
    conversation = Conversation(id="a", turns=(Turn(role="instruction", text="Hi"), Turn(role="response", text="Ho")))
    write_records(tmp_path / "a.jsonl", [conversation])
    assert read_training_records(tmp_path / "a.jsonl") == [conversation]
    (tmp_path / "b.jsonl").write_text("[1\n")
    with pytest.raises(RecordError, match="not valid JSON"):
        read_training_records(tmp_path / "b.jsonl")


def tokenised(ids, labels, name="a") -> Tokenised:
    return Tokenised(id=name, input_ids=tuple(ids), labels=tuple(labels))


def test_what_was_tokenised_elsewhere_makes_the_same_examples_as_the_conversation():
    turns = (
        Turn(role="system", text="Be short."),
        Turn(role="instruction", text="Add."),
        Turn(role="response", text="3"),
    )
    (prompt,) = examples_of([Conversation(id="a", turns=turns)], builder()).prompts
    (taken,) = examples_of([tokenised([i % V for i in prompt.ids], prompt.labels)], builder()).prompts
    assert [i % V for i in prompt.ids] == taken.ids
    assert prompt.labels == taken.labels
    (everything,) = examples_of([tokenised(taken.ids, taken.labels)], builder(), "all").prompts
    assert everything.labels == taken.ids


def test_rows_are_cut_and_those_without_a_response_left_out_and_both_counted():
    records = [
        tokenised([3, 4, 5, 6], [-100, 4, 5, 6], "whole"),
        tokenised([3, 4, 5, 6, 7], [-100, -100, 5, 6, 7], "cut"),
        tokenised([3, 4, 5, 6, 7], [-100] * 4 + [7], "cut away"),
        tokenised([3, 4], [3, -100], "only the first token, which nothing predicts"),
    ]
    found = examples_of(records, builder(max_tokens=4))
    assert [record.id for record in found.records] == ["whole", "cut"]
    assert (found.truncated, found.left_out) == (1, 2)
    assert found.prompts[1].labels == [-100, -100, 5, 6]


def test_tokenised_rows_fit_the_model_or_are_refused():
    with pytest.raises(BulwarkError, match='no roles, which the embedding "aside" needs'):
        examples_of([tokenised([3, 4], [-100, 4])], builder(), method="aside")
    with pytest.raises(RecordError, match=f'record "a" holds the id {V}'):
        examples_of([tokenised([3, V], [-100, V])], builder())


def test_a_conversation_that_makes_no_example_is_named():
    with pytest.raises(RecordError, match=r'record "b" makes no example: .*end with a response'):
        examples_of([Conversation(id="b", turns=(Turn(role="instruction", text="Hi"),))], builder())


@pytest.mark.parametrize("packed", [None, 65536])
def test_a_limit_of_65536_tokens_pads_nothing_to_it(packed):
    records = [tokenised(range(3, 3 + n), range(3, 3 + n), str(n)) for n in (4, 9, 6)]
    found = examples_of(records, builder(max_tokens=65536))
    batches = StepBatches(found.prompts, batch_size=3, micro_batch_size=3, pad_id=0, packed_length=packed)
    (batch,) = batches.of_step(0)
    assert batch.input_ids.shape == ((1, 19) if packed else (3, 9))
    assert torch.equal(batch.attention_mask.sum(), torch.tensor(19))
