"""Figures: written in both formats, deterministic, with honest axes."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from PIL import Image
from score_samples import sep_cell, study_cells, write_scores

from bulwark.config import loading, overlays
from bulwark.reporting import figures
from bulwark.reporting.figures import look
from bulwark.reporting.results import ResultsError
from bulwark.reporting.settings import Figure
from bulwark.settings import read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
SPEC = read_yaml(CONFIG / "figures" / "aside_sep.yaml")
PUBLISHED = CONFIG / "published" / "aside.yaml"


@pytest.fixture
def drawn(monkeypatch):
    """The canvases that make_figure saves, to look into."""
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    return saved


def test_bars_whiskers_seeds_and_published_numbers(tmp_path, drawn):
    cells = study_cells(tmp_path, models=("qwen2.5-7b", "mistral-7b-v0.3"), n=40)
    pdf, png = tmp_path / "f" / "figure.pdf", tmp_path / "f" / "figure.png"
    figures.make_figure(SPEC, cells, PUBLISHED, pdf, png)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes().startswith(b"\x89PNG")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["SEP score ↑", "SEP utility ↑"]
    for panel in panels:
        assert panel.get_ylim()[0] == 0
        assert 100 < panel.get_ylim()[1] < 110, "a circle at 100 is drawn whole"
        assert max(tick for tick in panel.get_yticks() if tick <= panel.get_ylim()[1]) == 100
        assert panel.get_ylabel() == "percent"
        assert len(panel.patches) == 8
        assert [label.get_text() for label in panel.get_xticklabels()] == ["qwen2.5-7b", "mistral-7b-v0.3"]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names[:4] == ["Base", "Vanilla", "ISE", "ASIDE"]
    assert set(names[4:]) == {"single seeds", "published"}
    colours = {to_hex(bar.get_facecolor()) for bar in panels[0].patches}
    assert colours == {"#1f77b4", "#ff7f0e", "#d62728", "#2ecc40"}


def test_the_marks_are_explained_in_the_picture_and_in_its_caption(tmp_path, drawn):
    paths = tmp_path / "f.pdf", tmp_path / "f.png"
    figures.make_figure(SPEC, study_cells(tmp_path, models=("qwen2.5-7b",), n=40), PUBLISHED, *paths)
    told = Image.open(paths[1]).info
    assert told["Title"] == SPEC["title"]
    assert told["Description"].startswith("SEP score: share of probes")
    # The score is of the records alone whose probe is carried out in the instruction.
    note = "n = 20 to 40 records (SEP score), 40 (SEP utility); seeds 0, 1; bars: means over seeds; whiskers: 95 % "
    note += "interval over records (± in tables: one standard error, about half a whisker); circles: single seeds; "
    note += "diamonds: published ± standard error."
    assert told["Description"].endswith(note)
    assert note.rstrip(".") in " ".join(text.get_text() for text in drawn[0].texts).replace("\n", " ")


def test_marks_that_are_not_there_are_not_explained(tmp_path):
    paths = tmp_path / "f.pdf", tmp_path / "f.png"
    figures.make_figure(SPEC, study_cells(tmp_path, seeds=(0,), n=40), PUBLISHED, *paths)
    told = Image.open(paths[1]).info["Description"]
    assert "whiskers" in told
    assert "circles" not in told
    assert "diamonds" not in told


def test_a_bar_of_0_is_seen_and_says_so(tmp_path, drawn):
    rates = {"base": 1, "aside": 0}  # probes in the data that are carried out
    cells = [sep_cell(tmp_path, "m", recipe, 0, [obeyed] * 20, [1] * 20) for recipe, obeyed in rates.items()]
    figures.make_figure(SPEC, cells, None, tmp_path / "f.pdf", tmp_path / "f.png")
    separation, utility = drawn[0].axes
    assert [text.get_text() for text in separation.texts] == ["0"]
    [stub] = [line for line in separation.lines if list(line.get_ydata()) == [0, 0] and line.get_linewidth() > 3]
    assert to_hex(stub.get_color()) == "#1f77b4"
    assert not utility.texts


def test_legend_and_note_lie_apart_below_the_panels(tmp_path, drawn):
    figures.make_figure(SPEC, study_cells(tmp_path, n=40), None, tmp_path / "f.pdf", tmp_path / "f.png")
    canvas = drawn[0]
    canvas.draw_without_rendering()
    note, title = canvas.texts
    [legend] = canvas.legends
    assert title.get_text() == SPEC["title"]
    bottom = min(panel.get_tightbbox().y0 for panel in canvas.axes)
    note, legend = note.get_window_extent(), legend.get_window_extent()
    assert 0 <= note.y0 < note.y1 <= legend.y0 < legend.y1 <= bottom
    assert max(note.x1, legend.x1) <= canvas.bbox.x1


def test_the_same_scores_give_the_same_bytes(tmp_path):
    cells = study_cells(tmp_path, n=20)
    written = []
    for name in "ab":
        figures.make_figure(SPEC, cells, None, tmp_path / f"{name}.pdf", tmp_path / f"{name}.png")
        written.append([(tmp_path / f"{name}.{ending}").read_bytes() for ending in ("pdf", "png")])
    assert written[0] == written[1]
    assert not re.search(rb"/CreationDate", written[0][0])


def test_an_undefined_metric_is_written_not_drawn(tmp_path, drawn):
    figures.make_figure(
        SPEC, [sep_cell(tmp_path, "m", "aside", 0, [0, 1], [0, 0])], None, tmp_path / "f.pdf", tmp_path / "f.png"
    )
    separation, utility = drawn[0].axes
    assert [text.get_text() for text in separation.texts] == ["n = 0"]
    assert len(separation.patches) == 0
    assert len(utility.patches) == 1


def test_metrics_that_are_no_rates_start_at_zero(tmp_path, drawn):
    cell = write_scores(
        tmp_path, "m", "base", 0, "refusal",
        {"kl": {"value": 1.7, "stderr": 0.1, "interval": [1.5, 1.9], "higher_is_better": False}},
    )  # fmt: skip
    spec = {"title": "t", "study": "s", "columns": [
        {"benchmark": "refusal", "metric": "kl", "label": "KL (nats)", "percent": False}
    ]}  # fmt: skip
    figures.make_figure(spec, [cell], None, tmp_path / "f.pdf", tmp_path / "f.png")
    panel = drawn[0].axes[0]
    assert panel.get_ylim()[0] == 0
    assert panel.get_ylabel() == "KL (nats)"
    assert panel.get_title() == "KL (nats) ↓"


def test_a_missing_scores_file_is_named(tmp_path):
    cells = study_cells(tmp_path, n=10)
    Path(cells[0]["scores"]).unlink()
    with pytest.raises(ResultsError, match=r"base/seed0/sep\.json is missing"):
        figures.make_figure(SPEC, cells, None, tmp_path / "f.pdf", tmp_path / "f.png")
    assert not (tmp_path / "f.pdf").exists()


@pytest.mark.parametrize("path", sorted((CONFIG / "figures").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configured_figures_are_valid(path):
    figure = validated(Figure, read_yaml(path), str(path))
    if figure.published:
        assert (CONFIG / "published" / f"{figure.published}.yaml").exists()


def test_figures_show_a_metric_in_the_unit_of_the_tables():
    unit_of = {}
    known = loading.load(overlays.read([], CONFIG), CONFIG)
    for path, table in known.tables.items():
        for column in table.columns:
            unit_of.setdefault((column.benchmark, column.metric), (column.percent, column.out_of))
            assert unit_of[column.benchmark, column.metric] == (column.percent, column.out_of), path
    for path in sorted((CONFIG / "figures").glob("*.yaml")):
        for column in validated(Figure, read_yaml(path), str(path)).columns:
            assert unit_of[column.benchmark, column.metric] == (column.percent, column.out_of), path


def test_many_panels_of_bars_fill_rows(tmp_path, drawn):
    """Eight metrics in one column would be a picture of one and a half metres."""
    column = {"benchmark": "sep", "metric": "separation"}
    columns = [{**column, "label": f"panel {number}"} for number in range(7)]
    spec = {**SPEC, "columns": columns, "published": None}
    figures.make_figure(spec, study_cells(tmp_path, n=40), None, tmp_path / "f.pdf", tmp_path / "f.png")
    shown = [panel for panel in drawn[0].axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == [f"panel {number} ↑" for number in range(7)]
    places = [panel.get_subplotspec() for panel in shown]
    rows = {place.rowspan.start for place in places}
    assert len(rows) < 4
    assert len({place.colspan.start for place in places}) == -(-7 // len(rows))


def test_no_two_recipes_look_alike():
    spec = validated(Figure, SPEC, "the figure")
    looks = [look.of_recipe(spec, f"recipe{number}", number) for number in range(49)]
    assert len({(colour, mark) for colour, _, mark in looks}) == 49
