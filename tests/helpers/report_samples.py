"""A report over made-up scores, and pages as trees."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from score_samples import study_cells, write_lines

from bulwark.reporting.claims import check_claim
from bulwark.reporting.figures import make_figure
from bulwark.reporting.verdicts import write_claims
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[2] / "config"
MARKUP = "<script>alert(1)</script>"
HOSTILE = (
    "<script>alert('answered')</script>",
    '"><img src=x onerror="alert(1)">',
    "' onmouseover='alert(2)' x='",
    "</div></article></details><h1>forged</h1><!--",
    "[click](javascript:alert(3)) <a href='javascript:alert(4)'>here</a>",
    "]]></script><style>*{display:none}</style>",
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt; &#x3c;b>",
    "\u202egnp.exe\u202c \u2066isolated\u2069 \u200bzero\ufeff",
    "nul \x00 bell \x07 escape \x1b[31m backspace \x08 return \r next \x85 separator \u2028",
    "x" * 50_000,
    "עברית وعربي " * 40,
    "z" + "\u0301" * 3000,
)


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict
    parent: Node | None = None
    children: list = field(default_factory=list)
    texts: list = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, in order, with single spaces."""
        return " ".join(" ".join(part if isinstance(part, str) else part.text for part in self.texts).split())

    def all(self, tag: str, **attributes) -> list[Node]:
        """The elements below of this tag and with these attributes; `_class`: one of its classes."""
        found = []
        for child in self.children:
            given = dict(child.attributes)
            classes = (given.get("class") or "").split()
            wanted = {key: value for key, value in attributes.items() if key != "_class"}
            if child.tag == tag and wanted.items() <= given.items() and attributes.get("_class") in (None, *classes):
                found.append(child)
            found += child.all(tag, **attributes)
        return found


class Page(HTMLParser):
    """A page as a tree; it fails for tags that are not balanced."""

    VOID = ("meta", "img", "br", "link", "input", "wbr")

    def __init__(self, path):
        super().__init__()
        self.root = self.at = Node("root", {})
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.at is self.root

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes), self.at)
        self.at.children.append(node)
        self.at.texts.append(node)
        if tag not in self.VOID:
            self.at = node

    def handle_endtag(self, tag):
        assert self.at.tag == tag
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.texts.append(data)

    def nodes(self, tag, **attributes):
        return self.root.all(tag, **attributes)


COLUMNS = {
    "aside_separates": {
        f"sep.{metric}": {"benchmark": "sep", "metric": metric, "label": label}
        for metric, label in (("separation", "SEP score"), ("utility", "SEP utility"))
    }
}


def report_of(tmp_path: Path, models=("miniature",), n: int = 120) -> dict:
    """What `make_report` takes, the texts of the configuration with markup in them."""
    cells = study_cells(tmp_path, models=models, n=n)
    published = CONFIG / "published" / "aside.yaml"
    spec = read_yaml(CONFIG / "tables" / "aside_sep.yaml") | {"title": f"Separation {MARKUP}"}
    figure = read_yaml(CONFIG / "figures" / "aside_sep.yaml") | {"caption": f"Of <b>records</b> {MARKUP}."}
    make_figure(figure, cells, published, tmp_path / "sep.pdf", tmp_path / "sep.png")
    claim = check_claim("aside_separates", read_yaml(CONFIG / "claims" / "aside_separates.yaml"), cells)
    claim["statement"] += f" {MARKUP}"
    write_claims([claim], COLUMNS, tmp_path / "claims.json", tmp_path / "claims.md")
    study = {
        "name": "aside", "description": f"Rotated roles {MARKUP}", "models": list(models),
        "recipes": ["base", "aside"], "seeds": [0, 1], "benchmarks": ["sep"],
        "tables": ["aside_sep"], "figures": ["aside_sep"],
        "every_recipe": ["base", "vanilla", "ise", "aside"], "chains": ["base", "vanilla", "ise", "aside"],
        "examples": [examples_of(cells, model, tmp_path / "data" / "sep" / f"{n}.jsonl") for model in models],
    }  # fmt: skip
    return {
        "name": "sample",
        "studies": [study],
        "toys": ["miniature", "another"],
        "claims": tmp_path / "claims.json",
        "columns": COLUMNS,
        "tables": {"aside_sep": {"spec": {**spec, "published": "aside"}, "cells": cells}},
        "published": {"aside": published},
        "figures": {"aside_sep": {"png": tmp_path / "sep.png", "benchmarks": ["sep"]}},
        "cells": cells,
    }


def examples_of(cells: list[dict], model: str, records: Path) -> dict:
    """What the page gets of the answers of a model at the first seed."""
    shown = [
        {
            **{key: cell[key] for key in ("recipe", "seed", "scores")},
            "answers": str(Path(cell["scores"]).with_name("sep.answers.jsonl")),
            "attacked": False,
        }
        for cell in cells
        if cell["model"] == model and cell["seed"] == 0
    ]
    return {"model": model, "benchmark": "sep", "records": str(records), "of_recipes": 9, "cells": shown}


def respond(given: dict, recipe: str, texts) -> None:
    """Exchange the answers of a recipe for `texts`, one per record in turn, in every variant."""
    [cell] = [cell for cell in given["cells"] if cell["recipe"] == recipe]
    lines = [json.loads(line) for line in Path(cell["answers"]).read_text().split("\n") if line]
    for number, line in enumerate(lines):
        line["response"] = texts[number // 2 % len(texts)]
    write_lines(Path(cell["answers"]), lines)
