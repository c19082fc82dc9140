"""Figures: written in both formats, deterministic, with honest axes."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from score_samples import sep_cell, study_cells, write_scores

from bulwark.reporting import figures
from bulwark.reporting.results import ResultsError
from bulwark.reporting.settings import Figure
from bulwark.settings import read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
SPEC = read_yaml(CONFIG / "figures" / "sep.yaml")
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
        assert panel.get_ylim() == (0, 100)
        assert panel.get_ylabel() == "%"
        assert len(panel.patches) == 8
        assert [label.get_text() for label in panel.get_xticklabels()] == ["qwen2.5-7b", "mistral-7b-v0.3"]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names[:4] == ["Base", "Vanilla", "ISE", "ASIDE"]
    assert set(names[4:]) == {"single seeds", "published"}
    colours = {to_hex(bar.get_facecolor()) for bar in panels[0].patches}
    assert colours == {"#1f77b4", "#ff7f0e", "#d62728", "#2ecc40"}


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
