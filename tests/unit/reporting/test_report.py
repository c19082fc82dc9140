"""The report: one page that holds everything and asks for nothing."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from score_samples import study_cells

from bulwark.reporting.claims import check_claim
from bulwark.reporting.figures import make_figure
from bulwark.reporting.report import common_provenance, make_report
from bulwark.reporting.results import ResultsError
from bulwark.reporting.tables import make_table
from bulwark.reporting.verdicts import write_claims
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[3] / "config"


class Page(HTMLParser):
    """Checks that tags are balanced; collects addresses."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def made(tmp_path):
    cells = study_cells(tmp_path)
    published = CONFIG / "published" / "aside.yaml"
    table = [tmp_path / f"aside_sep.{ending}" for ending in ("csv", "md", "tex")]
    make_table(read_yaml(CONFIG / "tables" / "sep.yaml"), cells, published, *table)
    picture = [tmp_path / f"aside_sep.{ending}" for ending in ("pdf", "png")]
    make_figure(read_yaml(CONFIG / "figures" / "sep.yaml"), cells, published, *picture)
    claim = check_claim("aside_separates", read_yaml(CONFIG / "claims" / "aside_separates.yaml"), cells)
    claim["statement"] += " <script>alert(1)</script>"
    write_claims([claim], {}, tmp_path / "claims.json", tmp_path / "claims.md")
    return {
        "title": "Bulwark: results",
        "claims": tmp_path / "claims.json",
        "tables": [table[1]],
        "figures": [(picture[1], "Bars & whiskers")],
        "scores": [cell["scores"] for cell in cells],
        "studies": {
            "aside": {"description": "Rotated roles", "models": ["miniature"], "recipes": ["aside"], "seeds": [0, 1]}
        },
    }


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path, made):
    make_report(tmp_path / "report.html", **made)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in text
    assert '<span class="badge reproduced">reproduced</span>' in text
    assert "Bars &amp; whiskers" in text
    assert base64.b64encode(made["figures"][0][0].read_bytes()).decode() in text
    assert "SEP score (%) ↑</th>" in text
    for said in ("0123abc", "2.13.0", "max_new_tokens", "Rotated roles", "truncated prompts"):
        assert said in text
    assert page.tags.count("table") == 5


def test_a_missing_file_is_named(tmp_path, made):
    with pytest.raises(ResultsError, match=r"gone\.md is missing"):
        make_report(tmp_path / "report.html", **{**made, "tables": [tmp_path / "gone.md"]})
    assert not (tmp_path / "report.html").exists()


def test_an_empty_study_is_said_to_be_empty(tmp_path):
    (tmp_path / "claims.json").write_text("[]")
    nothing = {"studies": {}, "claims": tmp_path / "claims.json", "tables": [], "figures": [], "scores": []}
    make_report(tmp_path / "report.html", title="t", **nothing)
    assert "lists no claim" in (tmp_path / "report.html").read_text()


def test_provenance_says_where_results_differ(made):
    contents = [json.loads(Path(path).read_text()) for path in made["scores"]]
    lines = common_provenance(contents)
    assert lines["seeds"] == "0, 1"
    assert lines["recipes"] == "base, vanilla, ise, aside"
    assert lines["git.commit"] == "0123abc"
    assert lines["checkpoint"] == "base (1 of 7); vanilla (2 of 7); ise (2 of 7); aside (2 of 7)"
    assert lines["answers_digest"] == "7 different values (see each scores file)"
