"""docs/adding.md, executed: its files written into a copy of the repository, its commands run there."""

import json
import re
import shlex

import pytest

from tests.conftest import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = {"src/bulwark/steps/confidence_penalty.py": 35, "src/bulwark/benchmarks/brevity.py": 45}


def blocks():
    """{path: text} of every file of the page, and the arguments of every snakemake command."""
    files, commands = {}, []
    for language, text in BLOCK.findall((ROOT / "docs" / "adding.md").read_text(encoding="utf-8")):
        first, rest = text.split("\n", 1)
        if language == "console":
            commands += [shlex.split(line)[1:] for line in text.replace("\\\n", " ").strip().splitlines()]
        else:
            files[first.removeprefix("# ")] = rest
    return files, commands


def test_what_is_added_is_small():
    files, _ = blocks()
    lines = {path: len(text.splitlines()) for path, text in files.items() if path.endswith(".py")}
    assert set(lines) == set(MOST_LINES)
    assert all(lines[path] <= most for path, most in MOST_LINES.items()), lines


@pytest.mark.slow
def test_the_worked_example_works_as_written(checkout):
    files, commands = blocks()
    assert len(files) == 6
    assert len(commands) == 2
    for path, text in files.items():
        target = checkout.folder / path
        assert not target.exists(), f"{path} is there already: the page would not add it"
        target.write_text(text, encoding="utf-8")
    for arguments in commands:
        checkout.snakemake(*arguments)
    results = checkout.folder / "results"
    table = next(results.rglob("adding.md")).read_text(encoding="utf-8")
    assert "brevity" in table
    assert "confidence_penalty" in table
    manifest = json.loads((results / "checkpoints/adding/confidence_penalty/seed0/checkpoint.json").read_text())
    assert (manifest["kind"], manifest["settings"]["beta"]) == ("confidence_penalty", 0.1)
    scores = json.loads((results / "scores/adding/confidence_penalty/seed0/brevity.json").read_text())
    assert scores["metrics"]["brevity"]["n"] == 40
    assert scores["reported"]["mean_words"] > 0
    kept = ("answers", "checkpoints", "data", "models", "scores", "reports")
    made = {path.name for folder in kept for path in (results / folder).iterdir()}
    assert all(name.startswith("adding") for name in made), "the demo's results lie in the same folders"
