"""docs/papers.md lists every table, figure and headline of the four sources; the workflow has a target for each.

What is left out has a reason, what waits for data names them, and nothing in config/ is missing on the page.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan_reports
from bulwark.settings import read_yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers.md"
PUBLISHED = {path.stem: read_yaml(path) for path in sorted((ROOT / "config" / "published").glob("*.yaml"))}
# The sources with numbered tables and figures: how many. ASIDE's could not be looked up; abliteration has repositories.
NUMBERED = {"tar": {"Table": 12, "Fig.": 8}, "steering": {"Table": 8, "Fig.": 7}}
# What has to be there of the others, by words of its item or of what it shows.
NAMED = {
    "aside": [
        ("SEP score",), ("AlpacaEval",), ("BIPIA", "StruQ", "TensorTrust", "Gandalf", "Purple", "RuLES"),
        ("Sec. 6.1",), ("Sec. 6.2", "histograms"), ("Sec. 6.2", "token by token"), ("Sec. 6.3",), ("Sec. 6.4",),
        ("grid",), ("distances between embeddings",), ("attention",),
    ],
    "abliteration": [
        ("HERETIC", "gemma-3-12b-it"), ("HERETIC", "geometry"), ("HERETIC", "residual stream"),
        ("ICONOCLAST", "eleven models"), ("Arditi", "without the direction"), ("Arditi", "cross-entropy"),
        ("Arditi", "adding the direction"), ("Arditi", "HarmBench"), ("extended refusals",),
    ],
}  # fmt: skip
UNCERTAIN = re.compile(r"\berrors?\b|interval|\bone run|\bbounds?\b|\bone seed|\bsingle seed", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """A line of the page. names: the targets, or the claims; none where it is left out."""

    paper: str
    item: str
    what: str
    names: tuple[str, ...]
    published: str
    remarks: str

    @property
    def awaited(self) -> str:
        """The data set that it waits for; empty for most."""
        found = re.match(r"waits for `(\w+)`", self.remarks)
        return found[1] if found else ""


def _lines() -> list[Line]:
    found = []
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        paper = re.match(r".*: paper_(\w+)\n", section)
        for line in section.splitlines() if paper else ():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("| ") or cells[0] in ("item", "headline"):
                continue
            if len(cells) == 5:
                item, what, names, published, remarks = cells
            else:
                (item, names, remarks), what, published = cells, "", "–"
            found.append(
                Line(paper[1], item, what, tuple(re.findall("`([^`]+)`", names)), published.strip("`"), remarks)
            )
    return found


LINES = _lines()
TARGETS = [line for line in LINES if line.what]
HEADLINES = [line for line in LINES if not line.what]
OURS = set(re.findall("`([^`]+)`", PAGE.read_text(encoding="utf-8").split("\n## Ours\n")[1]))
as_line = {"ids": lambda line: f"{line.paper}, {line.item}, {line.what}"}


@pytest.fixture(scope="module")
def papers():
    """The configuration of the papers at full scale."""
    return loading.load(overlays.read([], ROOT / "config"), ROOT / "config")


def _listed(papers, paper: str) -> set[str]:
    """The targets of the tables and figures that the studies of a paper list."""
    studies = [papers.studies[name] for name in plan_reports.papers(papers)[paper]]
    return {f"table_{name}" for study in studies for name in study.tables} | {
        f"figure_{name}" for study in studies for name in study.figures
    }


def test_the_four_sources_have_a_section_and_a_target(papers):
    assert {line.paper for line in LINES} == plan_reports.papers(papers).keys() == {*NUMBERED, *NAMED}


@pytest.mark.parametrize("line", TARGETS, **as_line)
def test_what_a_source_prints_is_made_or_left_out_for_a_reason(papers, line):
    if not line.names:
        assert len(line.remarks.split()) >= 3, "left out without a reason"
        return
    known = {f"table_{name}" for name in papers.tables} | {f"figure_{name}" for name in papers.figures}
    assert set(line.names) <= known
    listed = _listed(papers, line.paper)
    if line.awaited:
        assert papers.dataset(line.awaited).source.path is not None, "nobody has to bring these data"
        assert not listed & set(line.names), "it no longer waits: say so on the page"
    else:
        assert set(line.names) <= listed, f"paper_{line.paper} does not make it"


@pytest.mark.parametrize("line", HEADLINES, **as_line)
def test_every_headline_has_a_claim_or_a_reason(papers, line):
    if not line.names:
        assert len(line.remarks.split()) >= 5, "no claim, and no reason"
        return
    checked = plan_reports.claims(papers).spec
    assert set(line.names) <= papers.claims.keys()
    if line.awaited:
        assert papers.dataset(line.awaited).source.path is not None, "nobody has to bring these data"
    assert all((name in checked) != bool(line.awaited) for name in line.names)


@pytest.mark.parametrize("paper", NUMBERED)
def test_no_number_of_a_table_or_figure_is_missing(paper):
    told = " ".join(line.item for line in TARGETS if line.paper == paper)
    for kind, count in NUMBERED[paper].items():
        there = {int(number) for number in re.findall(rf"{re.escape(kind)} (\d+)", told)}
        assert there == set(range(1, count + 1)), kind


@pytest.mark.parametrize(("paper", "words"), [(paper, words) for paper, every in NAMED.items() for words in every])
def test_no_item_without_a_number_is_missing(paper, words):
    told = [f"{line.item} {line.what}" for line in TARGETS if line.paper == paper]
    assert any(all(word in text for word in words) for text in told)


def test_nothing_in_config_is_missing_on_the_page(papers):
    named = {name for line in LINES for name in line.names}
    assert not named & OURS
    every = {f"table_{name}" for name in papers.tables} | {f"figure_{name}" for name in papers.figures}
    assert every | papers.claims.keys() == named | OURS


@pytest.mark.parametrize("line", [line for line in TARGETS if line.names], **as_line)
def test_the_page_names_the_published_numbers_that_a_target_shows(papers, line):
    kinds = {"table": papers.tables, "figure": papers.figures}
    shown = {kinds[kind][name].published for kind, name in (target.split("_", 1) for target in line.names)}
    if line.published != "–" and line.published != "abliteration_extended_refusal":  # bounds, which no column can show
        assert line.published in shown
        assert line.published in PUBLISHED
    else:
        assert shown == {None}


def test_every_published_file_is_on_the_page_with_its_origin_and_its_errors():
    assert {line.published for line in TARGETS} - {"–"} == PUBLISHED.keys()
    for name, file in PUBLISHED.items():
        assert file["paper"], name
        assert file["source"], name
        values = [value for result in file["results"] for of in result["values"].values() for value in of.values()]
        printed = all(isinstance(value, list) for value in values)
        assert printed or any(UNCERTAIN.search(note) for note in file.get("notes", ())), f"{name}: which errors?"


def test_a_paper_is_all_of_its_studies(checkout):
    menu = checkout.snakemake("--list-target-rules").stdout
    for paper in (*NUMBERED, *NAMED):
        assert f"paper_{paper} (" in menu
    studies = ("study_abliteration_heretic", "study_abliteration_arditi")
    assert all(study in menu for study in studies)
    overlay = "name: some\nrun: [abliteration_heretic, abliteration_arditi, aside_sweep]\n"
    (checkout.folder / "some.yaml").write_text(overlay)
    paper = checkout.planned_outputs("--configfile", "some.yaml", "--", "paper_abliteration")
    assert {name for name in paper if "/tables/" in name and name.endswith(".md")} == {
        f"results/reports/some/tables/{study.removeprefix('study_')}.md" for study in studies
    }
