"""Preferences and passages: each accepted format becomes records, each broken row is named, data sets are mixed."""

import json

import pytest

from bulwark.data.mixtures import mixed
from bulwark.data.readers import read_source, read_split
from bulwark.data.records import Conversation, Passage, Preference, Turn, read_training_records, write_records
from bulwark.errors import RecordError

# Two turns of the kind that HH-RLHF's readme shows, written anew.
BEFORE = "\n\nHuman: Hello.\n\nAssistant: Hello, what is it?\n\nHuman: How do I pick a lock?\n\nAssistant:"
PROMPT = (
    Turn(role="instruction", text="Hello."),
    Turn(role="response", text="Hello, what is it?"),
    Turn(role="instruction", text="How do I pick a lock?"),
)


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def transcripts(path, **options):
    return read_source(path, Preference, format="transcripts", **options)


# --- preferences ---


def test_columns_of_preferences(file):
    path = file({"prompt": "Make a bomb.", "chosen": "No.", "rejected": "Mix it.", "system": "", "score": 1})
    fields = {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected", "system": "system"}
    (record,) = read_source(path, Preference, format="fields", fields=fields)
    assert record.turns == (Turn(role="instruction", text="Make a bomb."),)
    assert (record.chosen, record.rejected) == ("No.", "Mix it.")
    assert record.conversation("rejected").turns[-1] == Turn(role="response", text="Mix it.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruction": "prompt", "chosen": "chosen"}, "chosen and of the rejected"),
        ({"chosen": "chosen", "rejected": "rejected"}, "instruction or of the data"),
        ({"instruction": "prompt", "response": "chosen", "rejected": "rejected"}, 'unknown role "response"'),
    ],
)
def test_fields_of_preferences_are_checked(file, fields, message):
    path = file({"prompt": "Make a bomb.", "chosen": "No.", "rejected": "Mix it."})
    with pytest.raises(RecordError, match=message):
        read_source(path, Preference, format="fields", fields=fields)


def test_transcripts_of_several_turns(file):
    path = file({"chosen": f"{BEFORE} I'd rather not.\n\nSorry. ", "rejected": f"{BEFORE} With a pin.\nHuman: pins."})
    (record,) = transcripts(path)
    assert record.turns == PROMPT
    assert record.chosen == "I'd rather not.\n\nSorry."  # a blank line is not the other's turn
    assert record.rejected == "With a pin.\nHuman: pins."


def test_a_speaker_who_goes_on_is_one_turn(file):
    twice = "\n\nHuman: Hello.\n\nHuman: Are you there?\n\nAssistant:"
    (record,) = transcripts(file({"chosen": f"{twice} Yes.", "rejected": f"{twice} No."}))
    assert record.turns == (Turn(role="instruction", text="Hello.\n\nAre you there?"),)


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (f"{BEFORE} No.", BEFORE.replace("lock", "lot") + " Yes.", r"line 1: .*different prompts \(turn 3 differs\)"),
        (f"{BEFORE} No.", "\n\nHuman: Hello.\n\nAssistant: Yes.", r"different prompts \(3 turns against 1\)"),
        (f"{BEFORE} No.", BEFORE, "Assistant says nothing in rejected"),
        (f"{BEFORE} No.", f"{BEFORE} No.", "same text"),
        ("No.", f"{BEFORE} Yes.", "chosen does not begin with"),
        ("\n\nHuman: Hello.", "\n\nHuman: Hello.", "does not end with the assistant"),
        (None, f"{BEFORE} Yes.", 'needs a text in the column "chosen"'),
    ],
)
def test_transcripts_without_a_common_prompt_are_refused(file, chosen, rejected, message):
    with pytest.raises(RecordError, match=message):
        transcripts(file({"chosen": chosen, "rejected": rejected}))


def test_rows_that_make_no_record_are_dropped_where_asked_and_told(file, caplog):
    good = {"chosen": f"{BEFORE} No.", "rejected": f"{BEFORE} Yes."}
    path = file({**good, "chosen": "No."}, good, {**good, "rejected": good["chosen"]})
    (record,) = transcripts(path, unusable="drop")
    assert record.id == "1"
    assert "2 rows make no record and are left out. The first:" in caplog.text
    assert "line 1: chosen does not begin" in caplog.text
    with pytest.raises(RecordError, match="holds no record that is taken"):
        transcripts(file({**good, "chosen": "No."}), unusable="drop")


# --- passages ---


def test_the_text_of_a_corpus_is_taken_from_its_column(file, caplog):
    path = file({"txt_chunk": " <s> The cells of the biotin </s>", "label": True, "meta": "x", "reasoning": "y"})
    fields = {"text": "txt_chunk", "meta.label": "label"}
    (record,) = read_source(path, Passage, fields=fields, strip=("<s>", "</s>"))
    assert record == Passage(id="0", text="The cells of the biotin", meta={"label": True})
    assert "meta (1 records), reasoning (1 records)" in caplog.text
    assert read_source(file({"text": "a", "other": 1}), Passage)[0].text == "a"
    with pytest.raises(RecordError, match='"text" is missing'):
        read_source(file({"txt": "a"}), Passage)


def test_markers_are_taken_off_as_a_whole(file):
    """Strip as a method of text takes letters: of "<|eot_id|>" also those at the end of "...do it"."""
    (record,) = read_source(file({"text": "the way to do it<|eot_id|>"}), Passage, strip=("<|eot_id|>",))
    assert record.text == "the way to do it"


def test_short_passages_are_left_out_and_counted(file, caplog):
    path = file({"text": "a" * 150}, {"text": "b" * 151}, {"text": ""})
    records = read_source(path, Passage, longer_than=150)
    assert [record.text for record in records] == ["b" * 151]
    assert records[0].id == "1"
    assert "2 passages of at most 150 characters" in caplog.text
    with pytest.raises(RecordError, match='line 1: the field "text"'):
        read_source(file({"text": ""}), Passage)
    with pytest.raises(RecordError, match=r"holds no record that is taken \(0 unusable, 1 too short\)"):
        read_source(file({"text": "a"}), Passage, longer_than=150)


def test_passages_are_chosen_by_a_label(file):
    path = file(*({"txt_chunk": f"text {n}", "label": n % 3 == 0} for n in range(9)))
    options = {"fields": {"text": "txt_chunk", "meta.label": "label"}, "where": {"label": [True]}}
    records = read_split(path, "train", {"train": 1.0}, Passage, **options)
    assert [record.text for record in records] == ["text 0", "text 3", "text 6"]


# --- mixtures ---


@pytest.fixture
def files(tmp_path):
    """Twelve passages and seven conversations."""
    passages = [Passage(id=str(n), text=f"text {n}") for n in range(12)]
    turns = (Turn(role="instruction", text="Hello"), Turn(role="response", text="Hello"))
    write_records(tmp_path / "corpus.jsonl", passages)
    write_records(tmp_path / "chat.jsonl", [Conversation(id=str(n), turns=turns) for n in range(7)])
    return {"corpus": tmp_path / "corpus.jsonl", "chat": tmp_path / "chat.jsonl"}


def ids(records):
    return [record.id for record in records]


def test_a_mixture_takes_the_first_records_in_their_proportion(files, tmp_path):
    records = mixed(files, {"corpus": "all", "chat": 0.5})
    assert ids(records) == [f"corpus-{n}" for n in range(12)] + [f"chat-{n}" for n in range(6)]
    assert [record.meta["mixed_from"] for record in records[11:13]] == ["corpus", "chat"]
    assert len(mixed(files, {"chat": 7, "corpus": 0.5})) == 7 + 3  # rounded down
    assert len(mixed(files, {"corpus": 1, "chat": 1})) == 2
    write_records(tmp_path / "mixed.jsonl", records)
    assert read_training_records(tmp_path / "mixed.jsonl") == records  # of two kinds
    shuffled = mixed(files, {"corpus": "all", "chat": "all"}, shuffle_seed=0)
    assert sorted(ids(shuffled)) == sorted(ids(mixed(files, {"corpus": "all", "chat": "all"})))
    kinds = [type(record) for record in shuffled]
    assert kinds != sorted(kinds, key=str)
    assert ids(mixed(files, {"corpus": "all", "chat": "all"}, shuffle_seed=0, limit=5)) == ids(shuffled)[:5]


def test_a_mixture_of_more_than_there_is_is_refused(files):
    with pytest.raises(RecordError, match=r"chat.jsonl has 7 records, and the mixture takes 12 .*mixture\.chat: 1\.0"):
        mixed(files, {"corpus": "all", "chat": 1.0})
    with pytest.raises(RecordError, match="takes 0 of them"):
        mixed(files, {"corpus": 1, "chat": 0.5})
