"""docs/adding.md, executed: its files written into a copy of the repository, its commands run there."""

import json
import re
import shlex
import shutil

import pytest

from tests.conftest import ROOT, copy_of_the_tree

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """(path, text) of every file of the page, and the arguments of every snakemake command."""
    files, commands = {}, []
    for language, text in BLOCK.findall((ROOT / "docs" / "adding.md").read_text(encoding="utf-8")):
        first = text.split("\n", 1)[0]
        if language == "console":
            commands += [shlex.split(line)[1:] for line in text.strip().splitlines()]
        elif first.startswith("# "):
            files[first[2:].strip()] = text
    return files, commands


@pytest.mark.slow
def test_the_worked_example_works_as_written(finished, tmp_path):
    files, commands = blocks()
    assert len(files) == 7
    assert len(commands) == 2
    copy = copy_of_the_tree(tmp_path / "bulwark")
    for name in ("results", ".snakemake"):
        shutil.copytree(finished.folder / name, copy.folder / name, dirs_exist_ok=True)
    for path, text in files.items():
        target = copy.folder / path
        assert not target.exists(), f"{path} is there already: the page would not add it"
        target.write_text(text, encoding="utf-8")
    for arguments in commands:
        copy.snakemake(*arguments)
    manifest = json.loads(
        (copy.folder / "results/checkpoints/miniature/aside+weight_noise/seed0/checkpoint.json").read_text()
    )
    assert manifest["kind"] == "weight_noise"
    assert manifest["noise_norm"] > 0
    table = (copy.folder / "results/tables/robustness.md").read_text()
    assert "brevity" in table
    assert "weight_noise_strong" in table or "strong" in table
    plan = copy.plan("--configfile", "tests/config/smallest.yaml", "config/robustness.yaml", "--", "table_robustness")
    assert plan == {}
