"""Files as users have them: JSON that says two things, tables that a README lists, endings in capitals."""

from __future__ import annotations

import json

import pytest

from bulwark.data.contrasts import contrasts_of
from bulwark.data.readers import read_source
from bulwark.data.records import write_records
from bulwark.errors import RecordError

OWN = {"instruction": "question", "data": "context", "response": "answer"}
GOOD = '{"question": "Legs?", "answer": "8"}'
TWO = {"instruction": "question", "response": "answer"}


def texts(path, **options):
    found = read_source(path, format="fields", fields=options.pop("fields", OWN), **options)
    return [[turn.text for turn in record.turns] for record in found]


FAULTS = {
    "a key twice": ('{"question": "Eyes?", "answer": "2", "answer": "8"}', 'an object has the key "answer" twice'),
    "a key twice inside": ('{"question": "Eyes?", "answer": "2", "x": [{"y": 1, "y": 1}]}', 'the key "y" twice'),
    "a deep list": (f'{{"question": "Eyes?", "answer": "2", "x": {"[" * 5000}{"]" * 5000}}}', "nested too deep"),
    "a deep object": (f'{{"question": "Eyes?", "x": {"{" + chr(34) + "a" + chr(34) + ":"}' * 5000, "nested too deep"),
    "a long integer": (f'{{"question": "Eyes?", "answer": "2", "x": -{"9" * 5000}}}', "an integer has 5000 digits"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["lines.jsonl", "lines.json", "list.json"])
def test_json_that_says_two_things_or_cannot_be_held_is_named_by_line(tmp_path, form, fault):
    row, reason = FAULTS[fault]
    text = f"{GOOD}\n{row}\n" if form.startswith("lines") else f"[{GOOD},\n {row}]"
    (tmp_path / form).write_text(text)
    with pytest.raises(RecordError, match=rf"{form}, line 2: .*{reason}"):
        texts(tmp_path / form, fields=TWO)


def refusal(path):
    """Why a file of our own format is not read, or "" if it is."""
    try:
        write_records(path.with_name("out.jsonl"), read_source(path))
    except RecordError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("depth", [10, 150, 300, 600, 900, 960, 990])
def test_no_depth_of_nesting_passes_between_the_checks(tmp_path, depth):
    turns, deep = '"turns": [{"role": "data", "text": "x"}]', f"{'[' * depth}{']' * depth}"
    (tmp_path / "a.jsonl").write_text(f'{{{turns}, "meta": {{"x": {deep}}}}}\n')
    assert ("line 1: " in refusal(tmp_path / "a.jsonl")) == (depth > 150)


@pytest.mark.parametrize("fault", ["a key twice", "a deep list", "a long integer"])
def test_an_artefact_that_says_two_things_is_refused(tmp_path, fault):
    (tmp_path / "evil.json").write_text(FAULTS[fault][0])
    with pytest.raises(RecordError, match=rf"evil\.json: not readable as JSON \(.*{FAULTS[fault][1]}"):
        contrasts_of(tmp_path / "evil.json")


def test_a_list_inside_an_object_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "data": [json.loads(GOOD)]}, indent=1))
    with pytest.raises(RecordError, match=r'one object with a list under "data"\. Write a list of records'):
        texts(path, fields=TWO)
    path.write_text(json.dumps(json.loads(GOOD), indent=1))
    with pytest.raises(
        RecordError, match=r"The file is one object\. Write a list of records, .* or one JSON object per"
    ):
        texts(path, fields=TWO)
    path.write_text(f"{GOOD}\n")
    assert texts(path, fields=TWO) == [["Legs?", "8"]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("A.CSV", "question,answer\nLegs?,8\n"),
        ("a.Tsv", "question\tanswer\nLegs?\t8\n"),
        ("A.JSONL", GOOD),
        ("a.JSON", f"[{GOOD}]"),
    ],
)
def test_endings_in_capitals(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert texts(tmp_path / name, fields=TWO) == texts(tmp_path, fields=TWO) == [["Legs?", "8"]]


def snapshot(folder, files, more=""):
    """A folder whose README lists `files` as its split "train"."""
    listed = "".join(f"    - {name}\n" for name in files)
    readme = f"---\nconfigs:\n- config_name: default\n{more}  data_files:\n  - split: train\n    path:\n{listed}---\n"
    (folder / "README.md").write_text(readme)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_table_that_a_readme_lists_is_read_as_any_other(tmp_path):
    rows = "question,context,answer\nZip?,NA,020\nYes?,null,None\nLegs?,,8\n"
    snapshot(tmp_path, {"d.csv": rows, "e.csv": "question,context,answer\nTrue?,nan,1e5\n"})
    expected = [["Zip?", "NA", "020"], ["Yes?", "null", "None"], ["Legs?", "8"], ["True?", "nan", "1e5"]]
    assert texts(tmp_path) == texts(tmp_path, split="train") == expected
    with pytest.raises(RecordError, match='no split "test"'):
        texts(tmp_path, split="test")
    (tmp_path / "e.csv").write_text("question,context,answer\nHello, who are you?,NA,A20\n")
    with pytest.raises(RecordError, match=r"e\.csv, line 2: 4 fields where the header names 3"):
        texts(tmp_path)


def test_lines_that_a_readme_lists_keep_what_they_say(tmp_path):
    snapshot(
        tmp_path, {"d.jsonl": '{"question": "Legs?", "answer": "8"}\n{"question": "2?", "answer": "a", "answer": 1}'}
    )
    with pytest.raises(RecordError, match=r'd\.jsonl, line 2: an object has the key "answer" twice'):
        texts(tmp_path, fields=TWO)


def test_a_readme_may_name_the_separator_and_nothing_else_of_a_table(tmp_path):
    snapshot(tmp_path, {"d.csv": "question;answer\nZip?;020\n"}, '  sep: ";"\n  keep_default_na: false\n')
    assert texts(tmp_path, fields=TWO) == [["Zip?", "020"]]
    snapshot(tmp_path, {"d.csv": "Zip?,020\n"}, "  names: [question, answer]\n")
    with pytest.raises(RecordError, match="its README sets names for its tables"):
        texts(tmp_path, fields=TWO)


def test_a_readme_that_is_no_yaml_is_named(tmp_path):
    (snapshot(tmp_path, {"d.csv": "a,b\n"}) / "README.md").write_text("---\nconfigs:\n- data_files: [a\n---\n")
    with pytest.raises(RecordError, match="the data set cannot be read"):
        texts(tmp_path)
