"""Contrast sets, for trait vectors: questions, each with one system instruction for a trait and one against it.

Persona vectors (Chen et al. 2025, arXiv 2507.21509, Sec. 2.1) have one JSON file per trait, which a language model
wrote once: five pairs of instructions, twenty questions, and the rubric by which a judge scores the trait.
Here every question with every pair is one record, so that splits, limits and ids work as for any data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.data.records import parsed
from bulwark.errors import RecordError
from bulwark.settings import Closed, Text

KIND = "contrast"
"""The kind of a data set whose records are contrasts (config/datasets/)."""
NORMAL_LEVELS = ("normal", "benign", "0")
"""The levels (`meta.level`) of rows that do not show the trait."""

_NOT_DATA = "download.json"  # the manifest of a download


class Contrast(Closed):
    """A question that is answered twice: under the instruction `positive`, which asks for the trait, and `negative`.

    expected: the right answer, where there is one. rubric: how a language model scores the trait, with {question} and
    {answer} in it. Only the judge uses these two.
    """

    id: str
    question: Text
    positive: Text
    negative: Text
    trait: str
    expected: str | None = None
    rubric: str | None = None


class Question(Closed):
    """A question that measures how strongly a trait is shown; `expected` and `rubric` as in `Contrast`."""

    id: str
    question: Text
    trait: str
    expected: str | None = None
    rubric: str | None = None


def contrasts_of(path: Path) -> list[dict[str, Any]]:
    """Read the contrast set `path` as rows of `Contrast`: question by question, each with all pairs of instructions.

    The trait is the file's name without its ending, as the authors name them. Raises RecordError for a file that is not
    {"instruction": [{"pos", "neg"}, …], "questions": […], "eval_prompt": …}.
    """
    pairs = list(enumerate(_read(path)["instruction"]))
    return [
        {**row, "id": f"{row['id']}-{number}", "positive": pair["pos"], "negative": pair["neg"]}
        for row in questions_of(path)
        for number, pair in pairs
    ]


def questions_of(path: Path) -> list[dict[str, Any]]:
    """The questions of the contrast set `path` as rows of `Question`. Raises RecordError as `contrasts_of` does."""
    artefact, trait = _read(path), Path(path).stem
    return [
        {"id": f"{trait}-{number}", "question": question, "trait": trait, "rubric": artefact.get("eval_prompt")}
        for number, question in enumerate(artefact["questions"])
    ]


def unpacked(source: str | Path | Mapping[str, str], kind: str, folder: Path) -> Path | dict[str, str]:
    """Convert contrast sets to JSON Lines in `folder`: contrasts if `kind` is KIND, else questions.

    source: a file, a download's folder with one, or {split: file}; the result is one file, or {split: file}.
    """
    rows_of = contrasts_of if kind == KIND else questions_of

    def one(path: str | Path, name: str) -> Path:
        target = Path(folder) / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(Path(path)))
        target.write_text("".join(lines), encoding="utf-8")
        return target

    if isinstance(source, Mapping):
        return {split: str(one(path, split)) for split, path in source.items()}
    source = Path(source)
    files = [file for file in source.glob("*.json") if file.name != _NOT_DATA] if source.is_dir() else [source]
    if len(files) != 1:
        raise RecordError(f"{source}: expected the one artefact file of a trait here, found {len(files)} files.")
    return one(files[0], files[0].stem)


def _read(path: Path) -> dict[str, Any]:
    try:
        artefact = parsed(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist. Check the path.") from None
    except ValueError as error:
        raise RecordError(f"{path}: not readable as JSON ({error}). Save the artefact file again.") from None
    form = '{"instruction": [{"pos": text, "neg": text}, …], "questions": [text, …], "eval_prompt": text}'
    if not isinstance(artefact, dict):
        raise RecordError(f"{path}: a trait's artefact is an object {form}, not a {type(artefact).__name__}.")
    pairs, questions = artefact.get("instruction"), artefact.get("questions")
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise RecordError(
            f'{path}: "instruction" should be a list of {{"pos": text, "neg": text}}. The form is {form}.'
        )
    if not isinstance(questions, list) or not questions or not all(isinstance(text, str) for text in questions):
        raise RecordError(f'{path}: "questions" should be a list of texts. The form is {form}.')
    return artefact


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(side), str) for side in ("pos", "neg"))
