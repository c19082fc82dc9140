"""Sources: every accepted format becomes records, and every broken row is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest

from bulwark.data.readers import read_source, read_split, shuffled, split_records
from bulwark.data.records import Conversation, Turn
from bulwark.errors import RecordError
from bulwark.settings import Closed

ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Greet.", "input": " \n", "output": "Hello."},
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Add "}, {"type": "text", "text": "it."}]},
            {"role": "tool", "content": "1 2"},
            {"role": "assistant", "content": "3"},
        ]
    },
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}]},
]


class Question(Closed):
    id: int
    question: str
    choices: tuple[str, ...]


class Named(Closed):
    id: str
    text: str


def write(path: Path, rows) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path


def said(record: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in record.turns]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_alpaca_where_a_blank_input_is_no_data(tmp_path, ending):
    first, second = read_source(write(tmp_path / f"a.{ending}", ALPACA), format="alpaca")
    assert said(first) == [("instruction", "Add."), ("data", "1 2"), ("response", "3")]
    assert said(second) == [("instruction", "Greet."), ("response", "Hello.")]
    assert [first.id, second.id] == ["0", "1"]


def test_messages_keep_the_authority_of_their_speakers(tmp_path):
    first, second = read_source(write(tmp_path / "a.jsonl", CHAT), format="messages")
    assert said(first) == [("system", "Be short."), ("instruction", "Add it."), ("tool", "1 2"), ("response", "3")]
    assert said(second) == [("instruction", "Hello")]
    shared = [{"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}]
    (record,) = read_source(write(tmp_path / "b.jsonl", shared), format="messages")
    assert record.id == "7"
    assert said(record) == [("instruction", "Hi"), ("response", "Ho")]


def test_columns_named_by_the_user(tmp_path):
    rows = [
        {"q": "Add.", "context": "1 2", "a": "3", "key": "x"},
        {"q": "Greet.", "context": None, "a": "Hi", "key": "y"},
    ]
    fields = {"instruction": "q", "data": "context", "response": "a", "id": "key"}
    path = write(tmp_path / "a.json", rows)
    first, second = read_source(path, fields=fields)
    assert (first.id, said(first)) == ("x", [("instruction", "Add."), ("data", "1 2"), ("response", "3")])
    assert (second.id, said(second)) == ("y", [("instruction", "Greet."), ("response", "Hi")])
    assert read_source(path, format="fields", fields=fields) == [first, second]


def test_conversations_of_our_own_format(tmp_path):
    record = Conversation(id="a", turns=(Turn(role="data", text="x"),), meta={"n": 1})
    path = tmp_path / "a.jsonl"
    path.write_text(record.model_dump_json() + "\n")
    assert read_source(path) == [record]


def test_a_benchmarks_own_schema_gets_ids_and_renamed_columns(tmp_path):
    rows = [{"question": "Which?", "choices": ["a", "b"]}, {"question": "Who?", "choices": []}]
    first, second = read_source(write(tmp_path / "a.json", rows), Question)
    assert (first.id, second.id, first.choices) == (0, 1, ("a", "b"))
    other = [{"q": "Which?", "choices": ["a"], "rest": 1, "id": 5}]
    assert read_source(write(tmp_path / "b.json", other), Question, fields={"question": "q"}) == [
        Question(id=5, question="Which?", choices=("a",))
    ]
    assert read_source(write(tmp_path / "c.json", [{"id": 3, "text": "x"}]), Named)[0].id == "3"


def test_saved_data_sets(tmp_path):
    whole = datasets.Dataset.from_list(ALPACA)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "two")
    assert len(read_source(tmp_path / "one", format="alpaca")) == 2
    assert len(read_source(tmp_path / "two", format="alpaca")) == 2
    assert said(read_source(tmp_path / "two", format="alpaca", split="test")[0])[0] == ("instruction", "Greet.")
    with pytest.raises(RecordError, match=r'no split "tset"\. Did you mean "test"'):
        read_source(tmp_path / "two", format="alpaca", split="tset")
    with pytest.raises(RecordError, match="single data set without splits"):
        read_source(tmp_path / "one", format="alpaca", split="test")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_tables(tmp_path, ending):
    getattr(datasets.Dataset.from_list(ALPACA), f"to_{ending}")(tmp_path / f"a.{ending}")
    assert len(read_source(tmp_path / f"a.{ending}", format="alpaca")) == 2


QUESTIONS = {"instruction": "question", "data": "context", "response": "answer"}


def table(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_cell_of_a_table_is_text(tmp_path):
    rows = [
        "question,context,answer",
        "Expand it.,NA,Namibia",
        'What is nothing?,"",null',
        "Which code?,,020",
        "Legs?,,8",
    ]
    rows += ["One?,nan,None", '"Say ""no"",\nplease.",true, 1.0 ']
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        text = "\r\n".join(rows)
        text = text if separator == "," else text.replace('""no"",', '""no"";').replace(",", separator)
        path = table(tmp_path / f"a.{ending}", b"\xef\xbb\xbf" + text.encode())
        found = [dict(said(record)) for record in read_source(path, format="fields", fields=QUESTIONS)]
        assert [one.get("data") for one in found] == ["NA", None, None, None, "nan", "true"]
        assert [one["response"] for one in found] == ["Namibia", "null", "020", "8", "None", " 1.0 "]
        assert found[-1]["instruction"].replace(";", ",") == 'Say "no",\nplease.'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\nGo.,1\nHello, who are you?,Nina\n", "line 3: 3 fields where the header names 2"),
        ('question,answer\n"Two\nlines",1\nGo.\n', "line 4: 1 fields where the header names 2"),
        ("question,answer\nZ\xfcrich?,1\n".encode("latin-1"), "line 2: not valid UTF-8.*Save the file as UTF-8"),
        ("question,answer\nGo.,1\n".encode("utf-16"), "not valid UTF-8"),
        ('question,answer\nGo.,"1\n', "line 2: not valid CSV"),
        ('question,answer\nGo.,"He" said\n', "line 2: not valid CSV"),
        ("question;answer\nGo.;1\n", "line 1: the column names are separated by ';'"),
        ("question,question\nGo.,1\n", 'two columns are called "question"'),
        ("question,\nGo.,1\n", "a column has no name"),
        ("question,answer\n", "holds no record"),
        ("", "is empty"),
    ],
)
def test_a_table_that_does_not_fit_is_named_by_line(tmp_path, text, message):
    with pytest.raises(RecordError, match=message) as raised:
        read_source(
            table(tmp_path / "a.csv", text), format="fields", fields={"instruction": "question", "response": "answer"}
        )
    assert "a.csv" in str(raised.value)


def test_cells_take_the_types_of_a_schema(tmp_path):
    class Typed(Closed):
        id: str
        number: int
        share: float | None = None
        name: str | None = None
        sure: bool = False

    found = read_source(table(tmp_path / "a.csv", "id,number,share,name,sure\n007,3,0.5,12,TRUE\n8,4,,,false\n"), Typed)
    assert found == [
        Typed(id="007", number=3, share=0.5, name="12", sure=True),
        Typed(id="8", number=4, share=None, name=None, sure=False),
    ]
    with pytest.raises(RecordError, match="line 2: the field \"number\" should be a number, not 'three'"):
        read_source(table(tmp_path / "b.csv", "id,number\n1,three\n"), Typed)


def test_a_long_cell_is_read(tmp_path):
    path = table(tmp_path / "a.csv", "question,answer\n" + "x" * 200_000 + ",1\n")
    assert (
        len(said(read_source(path, format="fields", fields={"instruction": "question", "response": "answer"})[0])[0][1])
        == 200_000
    )


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", b"question,answer"])
def test_a_broken_parquet_file_is_named(tmp_path, content):
    with pytest.raises(RecordError, match=r"a\.parquet: not readable as Parquet.*Make the file again"):
        read_source(table(tmp_path / "a.parquet", content), format="alpaca")


def test_a_saved_data_set_with_a_broken_file_is_named(tmp_path):
    datasets.Dataset.from_list(ALPACA).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(RecordError, match="the saved data set cannot be read"):
        read_source(tmp_path / "one", format="alpaca")


def test_a_snapshot_with_one_file_and_the_marks_of_a_download(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("{}")
    (tmp_path / "download.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nText")
    write(tmp_path / "data_cleaned.json", ALPACA)
    assert len(read_source(tmp_path, format="alpaca")) == 2


def test_a_snapshot_whose_files_are_named_after_their_splits(tmp_path):
    write(tmp_path / "train-00000.jsonl", ALPACA)
    write(tmp_path / "train-00001.jsonl", ALPACA[:1])
    write(tmp_path / "test.jsonl", ALPACA[1:])
    assert len(read_source(tmp_path, format="alpaca")) == 3
    assert len(read_source(tmp_path, format="alpaca", split="test")) == 1
    with pytest.raises(RecordError, match=r'no file is named after "validation"; there are test\.jsonl'):
        read_source(tmp_path, format="alpaca", split="validation")


def test_a_snapshot_whose_readme_declares_its_splits(tmp_path):
    readme = (
        "---\nconfigs:\n- config_name: short\n  data_files:\n  - split: train\n    path: a.jsonl\n"
        "  - split: held_out\n    path: b.jsonl\n- config_name: long\n  data_files: c.jsonl\n---\n"
    )
    (tmp_path / "README.md").write_text(readme)
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", [{"instruction": name, "input": "", "output": name}])
    held_out = read_source(tmp_path, format="alpaca", split="held_out", subset="short")
    assert said(held_out[0])[0] == ("instruction", "b")
    assert said(read_source(tmp_path, format="alpaca", subset="long")[0])[0] == ("instruction", "c")


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"instruction": "x", "input": ""}, {"format": "alpaca"}, 'the field "output" is missing'),
        ({"instruction": "x", "outputs": "y"}, {"format": "alpaca"}, "Known|Did you mean"),
        ({"instruction": " ", "output": "y"}, {"format": "alpaca"}, r'"instruction" \(instruction\) is empty'),
        ({"instruction": "x", "output": None}, {"format": "alpaca"}, r'"output" \(response\) is empty'),
        ({"instruction": 3, "output": "y"}, {"format": "alpaca"}, "should be text, not 3"),
        (["x"], {"format": "alpaca"}, "should be an object"),
        ({"text": "x"}, {"format": "messages"}, 'needs a list "messages"'),
        ({"messages": [{"role": "usr", "content": "x"}]}, {"format": "messages"}, 'Did you mean "user"'),
        ({"messages": [{"role": "user", "content": ""}]}, {"format": "messages"}, r"messages\[0\] \(user\) is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"format": "messages"}, "not text"),
        ({"messages": []}, {"format": "messages"}, "at least one turn"),
        ({"a": "x"}, {"fields": {"instruction": "b"}}, 'the field "b" is missing'),
        ({"id": "0", "turns": [{"role": "data", "text": "x"}]}, {}, 'duplicate id "0", first at .*record 1'),
        ({"turns": [{"role": "data", "text": "\ud800"}]}, {}, "holds something that is not plain text"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, options, reason):
    good = {
        "alpaca": ALPACA[0],
        "messages": CHAT[0],
        None: {"b": "x"} if "fields" in options else {"turns": [{"role": "data", "text": "x"}]},
    }[options.get("format")]
    path = write(tmp_path / "a.json", [good, row])
    with pytest.raises(RecordError, match=reason) as caught:
        read_source(path, **options)
    assert f"{path}, record 2" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "holds no record"),
        ("a.jsonl", b"", "holds no record"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', "line 3: not valid JSON"),
        ("a.json", b'[\n{"a": "\xff"}]', "line 2: not valid UTF-8"),
        ("a.jsonl", b'{"a": "1"}\n{"a"', "line 2: not valid JSON"),
        ("a.jsonl", b'{"a": "\xff"}\n', "line 1: not valid UTF-8"),
        ("a.txt", b"x", "the ending should be one of"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=reason):
        read_source(tmp_path / name, fields={"instruction": "a"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "alpacca"}, 'Did you mean "alpaca"'),
        ({"format": "alpaca", "fields": {"instruction": "x"}}, "has its own columns"),
        ({"fields": {"instrucion": "x"}}, 'Did you mean "instruction"'),
        ({"fields": {"response": "x"}}, "must name the column of the instruction or of the data"),
        ({"schema": Question, "format": "alpaca"}, "wants its own fields"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, options, reason):
    with pytest.raises(RecordError, match=reason):
        read_source(write(tmp_path / "a.json", ALPACA), **options)


def test_a_missing_source(tmp_path):
    with pytest.raises(RecordError, match="does not exist"):
        read_source(tmp_path / "none.json")
    with pytest.raises(RecordError, match="holds no data file"):
        read_source(tmp_path)


def numbered(count: int) -> list[Conversation]:
    return [Conversation(id=str(i), turns=(Turn(role="data", text="x"),)) for i in range(count)]


def test_the_shuffle_depends_on_seed_and_ids_alone():
    records = numbered(50)
    order = [record.id for record in shuffled(records, 0)]
    assert order == [record.id for record in shuffled(records[::-1], 0)]
    assert order != [record.id for record in shuffled(records, 1)]
    assert sorted(order, key=int) == [record.id for record in records] == [r.id for r in shuffled(records, None)]
    assert order[:5] == ["46", "15", "44", "36", "20"]


def test_splits_are_disjoint_and_as_large_as_asked():
    cut = split_records(range(51_756), {"train": 0.9, "validation": 0.1})
    assert [len(part) for part in cut.values()] == [46_580, 5_176]
    cut = split_records(numbered(51), {"a": 46, "b": 5})
    assert [len(part) for part in cut.values()] == [46, 5]
    assert len({record.id for part in cut.values() for record in part}) == 51
    for wrong in ({"a": 52}, {"a": 0.9, "b": 0.2}, {"a": 50, "b": 0.1}):
        with pytest.raises(RecordError, match="51 records, too few"):
            split_records(numbered(51), wrong)
    with pytest.raises(RecordError, match="would be empty"):
        split_records(numbered(3), {"a": 0.1})


def test_splits_as_the_configuration_describes_them(tmp_path):
    rows = [{"instruction": str(i), "input": "", "output": "x"} for i in range(10)]
    path = write(tmp_path / "a.json", rows)
    splits = {"train": 0.8, "validation": 0.2}
    parts = {name: read_split(path, name, splits, format="alpaca", shuffle_seed=0) for name in splits}
    assert [len(part) for part in parts.values()] == [8, 2]
    assert not {r.id for r in parts["train"]} & {r.id for r in parts["validation"]}
    assert len(read_split(path, "train", {"train": 0.5}, format="alpaca", limit=4)) == 2
    with pytest.raises(RecordError, match='no split "test"'):
        read_split(path, "test", splits, format="alpaca")
    files = {"train": str(path), "held_out": str(write(tmp_path / "b.json", rows[:3]))}
    assert len(read_split(files, "test", {"train": "train", "test": "held_out"}, format="alpaca")) == 3
    assert len(read_split(files, "train", {"train": 6}, format="alpaca")) == 6
    with pytest.raises(RecordError, match="No file is named"):
        read_split(files, "test", {"test": 1.0}, format="alpaca")


def test_a_split_whose_rows_have_another_number_is_refused_also_those_that_are_left_out(tmp_path):
    rows = [{"instruction": str(i), "input": "", "output": "x"} for i in range(4)]
    path = write(tmp_path / "a.json", [*rows, {"instruction": "", "input": "", "output": "x"}])
    given = {"format": "alpaca", "unusable": "drop"}
    splits = {"train": 0.5, "test": 0.5}
    for size in (None, {}, {"test": 4}, {"train": None}, {"train": 5}):
        assert len(read_split(path, "train", splits, size=size, **given)) == 2
    for size in (4, 6):  # four make a record
        with pytest.raises(RecordError, match=rf"a\.json has 5 rows, and `size` of the data set says {size}\."):
            read_split(path, "train", splits, size={"train": size}, **given)
    assert len(read_source(path, size=7, most=2, **given)) == 2  # a look at the first of them


SEP = Path(os.environ.get("BULWARK_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "sep/validation.json"


@pytest.mark.skipif(not SEP.exists(), reason=f"the real SEP records are not at {SEP}")
def test_the_real_sep_records():
    from bulwark.benchmarks import sep

    records = read_source(SEP, sep.Record)
    assert len(records) == 892
    assert records[891].id == "891"
