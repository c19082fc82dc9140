#!/usr/bin/env python3
"""The documents as a site, with a page for each room of the library, made of its docstrings. `make site`

    python docs/build.py FOLDER

writes into FOLDER/pages what zensical reads (README.md as the first page, docs/*.md, examples/README.md, and api/*.md)
and into FOLDER/site the site. A link that leads to no page, or to no heading of one, ends it with status 1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "src" / "bulwark"
# Docstrings are prose in Markdown. What begins with an underscore is not shown, nor what has no docstring.
SHOWN = {
    "docstring_style": None,
    "filters": ["!^_"],
    "heading_level": 2,
    "members_order": "source",
    "separate_signature": True,
    "show_signature_annotations": True,
    "show_root_heading": True,
    "show_root_full_path": True,
    "show_source": False,
    "show_symbol_type_heading": True,
}


def main(folder: Path) -> int:
    """Write pages and site below `folder`. Returns zensical's exit status."""
    pages = folder / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    pages.mkdir(parents=True)
    for path in (ROOT / "docs").iterdir():
        if path.suffix in (".md", ".svg", ".png"):
            shutil.copy2(path, pages)
    # There README.md stands beside docs/, here beside its pages.
    first = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    (pages / "index.md").write_text(first, encoding="utf-8")
    shutil.copytree(ROOT / "examples", pages / "examples")
    (pages / "api").mkdir()
    for room, modules in rooms():
        (pages / "api" / f"{room}.md").write_text(page(room, modules), encoding="utf-8")
    configuration = folder / "mkdocs.yml"
    configuration.write_text(json.dumps(settings()), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(configuration)]
    return subprocess.run(command, check=False).returncode


def rooms() -> Iterator[tuple[str, list[str]]]:
    """(room, its modules that hold anything) in the order of their names; single files are the room `bulwark`."""
    found: dict[str, list[str]] = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        named = [part for part in parts if part != "__init__"]
        if path.read_text(encoding="utf-8").strip():
            found.setdefault(parts[0] if len(parts) > 1 else "bulwark", []).append(".".join(["bulwark", *named]))
    yield from sorted(found.items())


def page(room: str, modules: list[str]) -> str:
    """A room's page: the docstrings of its modules."""
    return "\n\n".join([f"# {room}", *(f"::: {module}" for module in modules)]) + "\n"


def settings() -> dict[str, object]:
    """The configuration of the generator, in the form of mkdocs.yml, which zensical reads."""
    titles = {
        path.name: re.match(r"# (.+)", path.read_text(encoding="utf-8"))[1] for path in (ROOT / "docs").glob("*.md")
    }
    order = ["glossary.md", "methods.md", "injections.md", "interpretability.md", "steering.md", "abliteration.md"]
    order += [
        "tamper_resistance.md",
        "pocket.md",
        "miniature.md",
        "reports.md",
        "serving.md",
        "adding.md",
        "architecture.md",
        "trust.md",
    ]
    rest = sorted(set(titles) - set(order))
    return {
        "site_name": "Bulwark",
        "docs_dir": "pages",
        "site_dir": "site",
        "theme": {"name": "material", "font": False, "features": ["navigation.indexes", "toc.follow"]},
        "markdown_extensions": [
            "admonition",
            "attr_list",
            "tables",
            "toc",
            "pymdownx.superfences",
            "pymdownx.highlight",
        ],
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT / "src")], "options": SHOWN}}}},
        ],
        "nav": [
            {"Bulwark": "index.md"},
            *({titles[name]: name} for name in order + rest if name in titles),
            {"Overlays": "examples/README.md"},
            {"Library": [{room: f"api/{room}.md"} for room, _ in rooms()]},
        ],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
