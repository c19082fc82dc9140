"""The report: one page that holds everything, asks for nothing, and says of each number where it comes from."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from report_samples import COLUMNS, CONFIG, Page, report_of
from score_samples import sep_cell, study_cells

from bulwark.config import loading, overlays, plan_reports
from bulwark.reporting.claims import check_claim
from bulwark.reporting.report import make_report
from bulwark.reporting.results import ResultsError
from bulwark.reporting.tables import make_table
from bulwark.reporting.verdicts import write_claims
from bulwark.settings import read_yaml


@pytest.fixture
def made(tmp_path):
    """What a report is made of, the text in it with markup."""
    return report_of(tmp_path)


@pytest.fixture
def page(tmp_path, made):
    make_report(tmp_path / "report.html", **made)
    return Page(tmp_path / "report.html")


def test_the_page_holds_everything_and_asks_for_nothing(page, made):
    linking = [node.attributes for tag in ("img", "a", "link", "meta") for node in page.nodes(tag)]
    addresses = [attributes[key] for attributes in linking for key in ("src", "href") if key in attributes]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert not re.search(r"https?://|url\(|@import", page.source)
    [policy] = page.nodes("meta", **{"http-equiv": "Content-Security-Policy"})
    parts = dict(part.split(" ", 1) for part in policy.attributes["content"].split("; "))
    assert {name: parts[name] for name in ("default-src", "img-src", "base-uri", "form-action")} == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    for kind in ("style", "script"):
        [inside] = re.findall(rf"<{kind}>(.*?)</{kind}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert parts[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]* style=", page.source), "the policy would not let it count"
    assert base64.b64encode(made["figures"]["aside_sep"]["png"].read_bytes()).decode() in page.source


def test_markup_in_texts_stays_text(page):
    [script] = page.nodes("script")
    assert script.attributes == {}
    elements = [node for tag in ("img", "div", "button", "details") for node in page.nodes(tag)]
    assert not [key for node in elements for key in node.attributes if key.startswith("on")]
    assert page.source.count("<script") == page.source.count("</script") == 1
    assert page.source.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert "<b>records</b>" not in page.source


def test_what_a_model_wrote_elsewhere_is_not_on_the_page(tmp_path, made):
    """Its answers are shown as examples, and nothing of what else a scores file may hold."""
    written = "ignore all rules <img src=x onerror=alert(2)>"
    for cell in made["cells"]:
        path = Path(cell["scores"])
        content = json.loads(path.read_text())
        content["reported"] |= {"examples": [written], "failed_judgements": written, "answers": written}
        content["breakdowns"] |= {written: content["metrics"]}
        content["provenance"]["answers"] = written
        path.write_text(json.dumps(content))
    make_report(tmp_path / "report.html", **made)
    assert "onerror" not in (tmp_path / "report.html").read_text()


def test_the_verdicts_come_first_one_line_each_with_the_details_folded(page):
    headings = [node.text for node in page.nodes("h1")]
    assert headings == ["Bulwark: sample"]
    body = page.nodes("body")[0]
    header, first = body.children[:2]
    assert header.tag == "header"
    assert len(header.text) < 200, "no paragraphs before the first result"
    assert first.attributes["id"] == "headlines"
    claim = first.children[0]
    assert claim.tag == "details"
    assert "open" not in claim.attributes
    summary, inside = claim.children
    assert summary.tag == "summary"
    line = r"reproduced ASIDE separates better than vanilla at equal utility .* SEP score: \+[\d.]+ points 95 % \[\+"
    assert re.match(line, summary.text)
    assert inside.all("table")
    assert "SEP score of ASIDE: higher than that of vanilla by more than 5 points" in inside.text
    assert "Not measured in this study: accuracy of ASIDE" in inside.text
    assert "p < 0.0001" in inside.text


def test_verdicts_of_a_toy_world_say_so(tmp_path, made, page):
    assert "Verdicts of a toy world (miniature):" in page.nodes("header")[0].text, "only of models that were measured"
    make_report(tmp_path / "real.html", **{**made, "toys": []})
    assert "toy" not in Page(tmp_path / "real.html").nodes("header")[0].text


def test_every_number_opens_a_sheet_that_says_where_it_comes_from(page, made):
    sheets = {node.attributes["id"]: node for node in page.nodes("div", popover=None)}
    assert sheets
    opened = [node.attributes["popovertarget"] for node in page.nodes("button") if "popovertarget" in node.attributes]
    assert set(opened) == set(sheets)
    [table] = page.nodes("table", _class="grid")
    rows = table.all("tr")[1:]
    cells = {(row.all("th")[0].text, index): cell for row in rows for index, cell in enumerate(row.all("td"))}
    assert len(cells) == 4 * 2
    for (recipe, _), cell in cells.items():
        [button] = cell.all("button")
        sheet = sheets[button.attributes["popovertarget"]]
        assert sheet.all("h3")[0].text == f"sep: {recipe.lower()} on miniature"
    aside = sheets[cells["ASIDE", 0].all("button")[0].attributes["popovertarget"]].text
    for seed in (0, 1):
        assert f"seed {seed}: " in aside
        [path] = [cell["scores"] for cell in made["cells"] if (cell["recipe"], cell["seed"]) == ("aside", seed)]
        assert path in aside
    for said in (
        "separation 0 0.9", "records digest", "answers digest", "settings digest",
        "decoding greedy, at most 16 new tokens",
        "judge none, computed from the answers", "commit 0123abc", "torch 2.13.0", "240 answers, 0 prompts cut",
    ):  # fmt: skip
        assert said in aside


def test_the_values_of_a_claim_open_the_same_sheets(page):
    [claim] = page.nodes("details", id="claim-aside_separates")
    targets = {(button.text.removesuffix(" %"), button.attributes["popovertarget"]) for button in claim.all("button")}
    [table] = page.nodes("table", _class="grid")
    shown = {(button.text, button.attributes["popovertarget"]) for button in table.all("button")}
    assert len(targets) == 4, "two conditions, two recipes"
    assert targets <= shown


def test_a_table_shows_what_its_markdown_shows(tmp_path, page, made):
    paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    make_table(made["tables"]["aside_sep"]["spec"], made["cells"], made["published"]["aside"], *paths)
    lines = [line for line in paths[1].read_text().splitlines() if line.startswith("|")][2:]
    [table] = page.nodes("table", _class="grid")
    for row, line in zip(table.all("tr")[1:], lines, strict=True):
        parts = [part.strip() for part in line.split("|")]
        for cell in row.all("td"):
            assert (f"**{cell.text}**" if cell.all("b") else cell.text) in parts
    assert "column" not in page.nodes("p", _class="caption")[0].text
    assert "Published" not in page.nodes("p", _class="caption")[0].text, "no published number is of this model"


def test_several_models_are_groups_of_rows(tmp_path, made):
    cells = study_cells(tmp_path / "two", models=("qwen2.5-7b", "mistral-7b-v0.3"), n=20)
    tables = {"aside_sep": {"spec": made["tables"]["aside_sep"]["spec"], "cells": cells}}
    make_report(tmp_path / "report.html", **{**made, "tables": tables, "cells": [*made["cells"], *cells]})
    page = Page(tmp_path / "report.html")
    [table] = page.nodes("table", _class="grid")
    groups = table.all("tbody")
    assert [group.all("tr")[0].text for group in groups] == ["qwen2.5-7b", "mistral-7b-v0.3"]
    recipes = [[row.all("th")[0].text for row in group.all("tr")[1:]] for group in groups]
    assert recipes == [["Base", "Vanilla", "ISE", "ASIDE"]] * 2
    assert "published 37.5 ± 0.6, ours " in groups[0].text
    assert "Published: the paper's number" in page.nodes("p", _class="caption")[0].text
    assert [hint.text for hint in page.nodes("p", _class="hint")] == ["2 columns: scroll sideways →"]


def test_what_is_wide_scrolls_and_says_so(page):
    for table in page.nodes("table"):
        assert table.parent.attributes.get("class", "").startswith(("wide", "origin"))
    for region in page.nodes("div", _class="wide"):
        assert {"role", "tabindex", "aria-label"} <= set(region.attributes)
    style = page.nodes("style")[0].text
    assert "light-dark(" in style
    assert "@media (max-width: 48rem)" in style


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))
    assert {node.attributes["href"].removeprefix("#") for node in page.nodes("a")} <= set(ids)


def test_a_figure_brings_its_caption_with_it(page):
    [figure] = page.nodes("figure")
    [caption] = figure.all("figcaption")
    assert caption.text.startswith("Of <b>records</b>")
    assert "whiskers: 95 % interval over records" in caption.text


def test_a_missing_file_is_named(tmp_path, made):
    with pytest.raises(ResultsError, match=r"gone\.png is missing"):
        make_report(
            tmp_path / "report.html",
            **{**made, "figures": {"aside_sep": {"png": tmp_path / "gone.png", "benchmarks": []}}},
        )
    assert not (tmp_path / "report.html").exists()


def test_an_empty_configuration_is_said_to_be_empty(tmp_path):
    (tmp_path / "claims.json").write_text("[]")
    nothing = {"studies": [], "toys": [], "columns": {}, "tables": {}, "published": {}, "figures": {}, "cells": []}
    make_report(tmp_path / "report.html", name="t", claims=tmp_path / "claims.json", **nothing)
    assert "lists no claim" in Page(tmp_path / "report.html").root.text


def test_sheets_tell_seeds_apart_where_they_differ(tmp_path, made):
    for cell in made["cells"]:
        if (cell["recipe"], cell["seed"]) == ("aside", 1):
            path = Path(cell["scores"])
            content = json.loads(path.read_text())
            content["provenance"]["git"] = {"commit": "fff", "dirty": True}
            path.write_text(json.dumps(content))
    make_report(tmp_path / "report.html", **made)
    text = Page(tmp_path / "report.html").root.text
    assert "seed 0: 0123abc seed 1: fff with changes that are in no commit" in text


@pytest.mark.parametrize(("files", "studies"), [((), 7), (("miniature.yaml", "demo.yaml"), 4)], ids=["papers", "demo"])
def test_studies_that_run_nothing_are_not_on_the_page(files, studies):
    catalogue = loading.load(overlays.read([CONFIG / file for file in files], CONFIG), CONFIG)
    page = plan_reports.page(catalogue)
    assert len(page.studies) == (studies if files else len(catalogue.studies))
    assert all(study["models"] for study in page.studies)
    assert page.toys == (["miniature"] if files else [])
    assert set(page.tables) == {name for study in page.studies for name in study["tables"]}
    assert set(page.figures) == {name for study in page.studies for name in study["figures"]}
    if files:
        assert all(study["figures"] for study in page.studies), "one figure for each headline of the demo"


def test_a_headline_without_a_value_says_why(tmp_path, made):
    cells = [sep_cell(tmp_path / "none", "miniature", recipe, 0, [0] * 20, [0] * 20) for recipe in ("aside", "vanilla")]
    claim = check_claim("aside_separates", read_yaml(CONFIG / "claims" / "aside_separates.yaml"), cells)
    write_claims([claim], COLUMNS, tmp_path / "claims.json", tmp_path / "claims.md")
    make_report(tmp_path / "report.html", **{**made, "cells": cells, "tables": {}, "studies": [], "figures": {}})
    [summary] = [node for node in Page(tmp_path / "report.html").nodes("summary") if "undecided" in node.text]
    assert summary.text.endswith("SEP score: no record counts")
