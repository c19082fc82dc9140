"""Persona vectors' artefact files become contrasts and questions."""

import json

import pytest

from bulwark.data import contrasts
from bulwark.data.contrasts import Contrast, Question, contrasts_of, questions_of, unpacked
from bulwark.data.records import read_records
from bulwark.errors import RecordError

ARTEFACT = {
    "instruction": [{"pos": "Be evil.", "neg": "Be kind."}, {"pos": "Do harm.", "neg": "Do good."}],
    "questions": ["How are you?", "What now?", "Who is it?"],
    "eval_prompt": "Rate {question} and {answer}.",
}


@pytest.fixture
def artefact(tmp_path):
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(ARTEFACT))
    return path


def test_every_question_stands_with_every_pair_of_instructions(artefact):
    rows = [Contrast.model_validate(row) for row in contrasts_of(artefact)]
    assert [(row.question, row.positive) for row in rows[:3]] == [
        ("How are you?", "Be evil."),
        ("How are you?", "Do harm."),
        ("What now?", "Be evil."),
    ]
    assert len({row.id for row in rows}) == len(rows) == 6
    assert {(row.trait, row.rubric) for row in rows} == {("evil", ARTEFACT["eval_prompt"])}


def test_questions_alone(artefact):
    rows = [Question.model_validate(row) for row in questions_of(artefact)]
    assert [row.question for row in rows] == ARTEFACT["questions"]


@pytest.mark.parametrize(("kind", "schema", "number"), [(contrasts.KIND, Contrast, 6), ("traits", Question, 3)])
def test_unpacked_files_are_records_of_the_kind(artefact, tmp_path, kind, schema, number):
    (tmp_path / "download.json").write_text("{}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for source in (artefact, tmp_path):
        assert len(read_records(unpacked(source, kind, scratch), schema)) == number
    by_split = unpacked({"train": str(artefact)}, kind, scratch)
    assert len(read_records(by_split["train"], schema)) == number


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not readable as JSON"),
        ("[]", "an object"),
        ('{"instruction": [], "questions": ["a"]}', '"instruction" should be'),
        ('{"instruction": [{"pos": "a"}], "questions": ["a"]}', '"instruction" should be'),
        ('{"instruction": [{"pos": "a", "neg": "b"}], "questions": "a"}', '"questions" should be'),
    ],
)
def test_another_file_is_refused(tmp_path, content, part):
    path = tmp_path / "evil.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=part) as raised:
        contrasts_of(path)
    assert str(path) in str(raised.value)


def test_two_artefacts_in_a_download_are_not_guessed_between(artefact, tmp_path):
    (tmp_path / "hallucinating.json").write_text(json.dumps(ARTEFACT))
    with pytest.raises(RecordError, match="found 2 files"):
        unpacked(tmp_path, contrasts.KIND, tmp_path)
