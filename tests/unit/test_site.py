"""The site of the documents has every page and every module. `make site` builds it and follows its links."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
BUILD = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BUILD)


def test_every_module_that_holds_anything_is_on_one_page():
    expected = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src" / "bulwark").rglob("*.py")
        if path.stat().st_size
    }
    shown = [
        module for room, modules in BUILD.rooms() for module in re.findall(r"::: (\S+)", BUILD.page(room, modules))
    ]
    assert sorted(shown) == sorted(expected)


def test_every_document_is_in_the_menu():
    menu = [name for entry in BUILD.settings()["nav"] for name in entry.values() if isinstance(name, str)]
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(menu)
    assert len(menu) == len(set(menu))
