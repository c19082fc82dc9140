"""The changes of tests/mutants/ still apply, and the tests that they name are there. `make mutants` runs them."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests import mutants

EVERY = mutants.mutants()


@functools.cache
def names_in(file: str) -> set[str]:
    """The tests of a file as node ids have them: functions, classes, and functions of classes behind `::`."""
    found = set()
    for node in ast.parse((mutants.ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {node.name, *(f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef))}
    return found


def test_changes_apply_to_what_is_there_now():
    """And leave code that can be read: what cannot would turn any test red."""
    texts = {file: (mutants.ROOT / file).read_text(encoding="utf-8") for file in {mutant.file for mutant in EVERY}}
    wrong = []
    for mutant in EVERY:
        try:
            ast.parse(mutant.applied(texts[mutant.file]))
        except (ValueError, SyntaxError) as error:
            wrong.append(f"{mutant.name}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_tests_of_changes_are_there():
    missing = []
    for mutant in EVERY:
        for test in mutant.tests:
            file, *names = re.sub(r"\[.*\]$", "", test).split("::")
            if not (mutants.ROOT / file).is_file() or (names and "::".join(names) not in names_in(file)):
                missing.append(f"{mutant.name}: {test}")
    assert not missing, "\n".join(missing)
    assert all(mutant.tests for mutant in EVERY)


def test_changes_have_names_of_their_own_and_say_in_a_line_what_they_are_about():
    assert len(EVERY) >= 60
    assert len({mutant.name for mutant in EVERY}) == len({(one.file, one.old, one.new) for one in EVERY}) == len(EVERY)
    assert [mutant.name for mutant in EVERY if not mutant.why.strip() or "\n" in mutant.why.strip()] == []


def test_a_change_that_does_not_apply_once_is_told():
    [first, *_] = EVERY
    for text, count in (("", 0), (first.old * 2, 2)):
        with pytest.raises(ValueError, match=f"{first.name}: its old text stands {count} times"):
            first.applied(text)


def test_changes_are_chosen_by_the_beginning_of_their_names():
    assert mutants.chosen([]) == EVERY
    assert {mutant.name.split("/")[0] for mutant in mutants.chosen(["aside", "detectors/"])} == {"aside", "detectors"}
    with pytest.raises(ValueError, match="no mutant's name begins with nonsense"):
        mutants.chosen(["nonsense"])
