"""The commands that the pages give ask for targets that exist in the configuration that they name."""

import functools
import re
from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan_reports

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
COMMAND = re.compile(r"\b(?:snakemake|bulwark (?:plan|status)) (?:[^`#\n]*\\\n)*[^`#\n]*")
TARGET = re.compile(r"(?:study|table|figure|paper)_\w+$")


def asked() -> list[tuple[str, tuple[str, ...], str]]:
    """(page, overlays, target) of every command in the pages that names a target of a study, table, figure or paper."""
    found = []
    for page in PAGES:
        for command in COMMAND.findall(page.read_text(encoding="utf-8")):
            words = command.replace("\\\n", " ").split()
            files = tuple(word for word in words if re.fullmatch(r"config/\w+\.yaml", word))
            found += [(page.name, files, word) for word in words if TARGET.match(word)]
    return sorted(set(found))


@functools.cache
def targets(files: tuple[str, ...]) -> set[str]:
    read = overlays.read([ROOT / file for file in files], ROOT / "config")
    catalogue = loading.load(read, ROOT / "config")
    studies = {f"study_{name}" for name in catalogue.studies if plan_reports.of_study(catalogue, name)}
    papers = {f"paper_{name}" for name in plan_reports.papers(catalogue)}
    return studies | papers | {f"table_{n}" for n in catalogue.tables} | {f"figure_{n}" for n in catalogue.figures}


def test_there_are_such_commands():
    assert len(asked()) > 15
    assert ("steering.md", ("config/miniature.yaml",), "study_steering_detectors") in asked()


@pytest.mark.parametrize(("page", "files", "target"), asked())
def test_a_target_in_a_page_exists(page, files, target):
    if not all((ROOT / file).exists() for file in files):
        assert page == "adding.md", "a page that has the reader write an overlay first"
        return
    assert target in targets(files)
