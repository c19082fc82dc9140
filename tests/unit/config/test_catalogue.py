"""Digests of code: what decides that something is computed again."""

import sys

import pytest

from bulwark.config.catalogue import code_digest

SOURCE = '''"""A module."""
WORDS = ("a", "b")

def prompts(record):
    """Make prompts."""
    return [_asked(word) for word in WORDS]

def _asked(word):
    return word + "?"

def score(answer):
    return len(answer)
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(source, *roots):
        (tmp_path / "somewhere.py").write_text(source)
        return code_digest("somewhere", *roots)

    return of


def test_comments_docstrings_and_layout_do_not_count(digest):
    assert digest(SOURCE) == digest(SOURCE.replace('"""Make prompts."""', '"""Say more."""  # and a remark\n'))
    assert digest(SOURCE) == digest(SOURCE.replace("\n\n", "\n\n\n"))


def test_code_does(digest):
    assert digest(SOURCE) != digest(SOURCE.replace("len(answer)", "len(answer) + 1"))


@pytest.mark.parametrize(
    ("old", "new"), [('"?"', '"!"'), ('("a", "b")', '("a",)'), ("[_asked(word)", "[word or _asked(word)")]
)
def test_with_roots_only_what_they_use_counts(digest, old, new):
    assert digest(SOURCE, "prompts") != digest(SOURCE.replace(old, new), "prompts")
    assert digest(SOURCE, "prompts") == digest(SOURCE.replace("len(answer)", "1"), "prompts")
