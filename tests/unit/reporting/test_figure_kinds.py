"""Every kind of figure from made-up results: what is drawn is what the files say, and says what it rests on."""

from __future__ import annotations

import pytest
from figure_samples import detectors_cell, dynamics_cell, swept_cell

from bulwark.errors import ConfigurationError
from bulwark.reporting.figures import look, make_figure
from bulwark.reporting.results import ResultsError
from bulwark.reporting.settings import Figure
from bulwark.settings import validated

COMMON = {"title": "A figure", "study": "s"}
TRAIT = {"benchmark": "trait", "metric": "expression", "label": "trait expression"}
ALPHA = {
    "x": r"strength $\alpha$",
    "series": {"static": {"steer_05": 0.5, "steer": 1, "steer_2": 2}, "rising": {"pis": 1}},
    "references": {"sft": "unprotected", "base": "base"},
}
PAIR = {"x": "probe_cos", "y": "probe_proj", "x_label": "cos", "y_label": "proj", "x_line": 0.12}
LEVELS = {"0": "normal", "1": "level I", "2": "level II"}
LABELS = {"steer": "full course", "steer_early": "early course", "sft": "none"}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a figure and return its canvas; the files are checked to be there."""
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])

    def drawn(spec: dict, cells: list[dict], published=None):
        make_figure({**COMMON, **spec}, cells, published, tmp_path / "f.pdf", tmp_path / "f.png", tmp_path / "f.csv")
        assert len((tmp_path / "f.csv").read_text(encoding="utf-8").splitlines()) > 2, "its marks as numbers"
        assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
        return saved[-1]

    return drawn


RATES = {"base": 0.05, "sft": 0.9, "steer_05": 0.5, "steer": 0.25, "steer_2": 0.4, "pis": 0.2}


def swept(folder, rates=RATES, benchmark="trait"):
    return [
        swept_cell(folder, recipe, seed, rate + 0.02 * seed, benchmark)
        for recipe, rate in rates.items()
        for seed in ((0,) if recipe == "base" else (0, 1, 2))
    ]


def trajectories(folder, seeds=(0, 1, 2)):
    shapes = {"steer": 1.0, "steer_early": 0.4, "sft": None}
    return [dynamics_cell(folder, recipe, seed, share) for recipe, share in shapes.items() for seed in seeds]


def names(canvas) -> list[str]:
    return [text.get_text() for text in canvas.legends[0].get_texts()]


def note(canvas) -> str:
    return look.noted(canvas)


def test_lines_stand_at_the_swept_values(tmp_path, draw):
    canvas = draw({"kind": "lines", "columns": [TRAIT], "lines": ALPHA}, swept(tmp_path))
    [panel] = canvas.axes
    static, rising = panel.containers
    assert list(static[0].get_xdata()) == [0.5, 1, 2]
    assert static[0].get_ydata() == pytest.approx(
        [100 * round(80 * r + 80 * 0.02) / 80 for r in (0.5, 0.25, 0.4)], abs=1
    )
    assert list(rising[0].get_xdata()) == [1]
    assert panel.get_xlabel() == r"strength $\alpha$"
    assert panel.get_title() == "trait expression ↓"
    assert panel.get_ylim()[0] == 0
    assert 100 < panel.get_ylim()[1] < 110, "a mark at 100 is drawn whole"
    assert set(names(canvas)) == {"static", "rising", "unprotected", "base"}
    assert note(canvas) == (
        f"n = 80 records per mark; seeds 0, 1, 2; marks: means over seeds; {look.WHISKERS}; circles: single seeds; "
        "horizontal lines: recipes that do not depend on it."
    )


def test_an_average_of_columns_has_a_panel_of_its_own_before_theirs(tmp_path, draw):
    """The paper's figures of strengths and layers show averages of benchmarks, with one or two values in words."""
    other = {recipe: rate / 2 for recipe, rate in RATES.items()}
    cells = [*swept(tmp_path), *swept(tmp_path, other, "other")]
    (tmp_path / "published.yaml").write_text(
        "results: [{benchmark: average, metric: both, unit: percent, values: {m: {steer_2: 33.3}}}]"
    )
    columns = [TRAIT, {**TRAIT, "benchmark": "other", "label": "other"}]
    columns.append({**TRAIT, "benchmark": "never", "label": "never", "if_measured": True})
    averages = [
        {"label": "both", "of": ["trait expression", "other", "never"]},
        {"label": "x", "of": ["other", "never"]},
    ]
    spec = {"kind": "lines", "columns": columns, "averages": averages, "lines": ALPHA}
    canvas = draw(spec, cells, tmp_path / "published.yaml")
    assert [panel.get_title() for panel in canvas.axes] == ["both of 2 ↓", "trait expression ↓", "other ↓"]
    both, *own = ([list(container[0].get_ydata()) for container in panel.containers] for panel in canvas.axes)
    for at, line in enumerate(both):
        assert line == pytest.approx([(a + b) / 2 for a, b in zip(own[0][at], own[1][at], strict=True)])
    diamonds = [[line.get_xydata().tolist() for line in p.lines if line.get_marker() == "D"] for p in canvas.axes]
    assert diamonds == [[[pytest.approx([2, 33.3])]], [], []]
    assert "diamonds: published; both of 2: mean of trait expression, other (published: of 3)" in note(canvas)


def test_averages_are_of_columns_and_for_lines(tmp_path):
    for spec, told in (
        ({"kind": "bars", "columns": [TRAIT, {**TRAIT, "label": "b"}]}, "drawn by figures of kind lines only"),
        ({"kind": "lines", "lines": ALPHA, "columns": [TRAIT]}, 'of "b", which is no column'),
    ):
        averages = [{"label": "both", "of": ["trait expression", "b"]}]
        with pytest.raises(ConfigurationError, match=told):
            validated(Figure, {**COMMON, **spec, "averages": averages}, "f")


def test_a_threshold_off_the_axis_is_not_announced(tmp_path, draw):
    for line, announced in ((0.12, True), (7.0, False)):
        spec = {"benchmark": "detectors", "pairs": [PAIR | {"x_line": line}], "levels": LEVELS}
        canvas = draw({"kind": "scatter", "scatter": spec}, [detectors_cell(tmp_path)])
        assert ("dashed: thresholds" in note(canvas)) == announced
        assert (len(canvas.axes[0].lines) > 0) == announced


def test_an_onset_that_no_recipe_has_is_not_announced(tmp_path, draw):
    spec = {"kind": "cosine", "cosine": {"analysis": "dynamics"}, "labels": LABELS}
    assert "vertical lines" in note(draw(spec, trajectories(tmp_path)))
    never = draw(spec | {"rows": ["sft"]}, [dynamics_cell(tmp_path, "sft", 0, None)])
    assert "vertical lines" not in note(never)
    assert "bands" not in note(never), "one seed has no range"


def test_trajectories_of_all_recipes_share_their_limits(tmp_path, draw):
    spec = {"analysis": "dynamics", "modules": ["residual", "down_proj"]}
    rows = {"rows": ["steer", "steer_early", "sft"], "labels": LABELS}
    canvas = draw({"kind": "trajectory", "trajectory": spec, **rows}, trajectories(tmp_path))
    assert len(canvas.axes) == 9  # two modules and the saddle, three recipes
    flat = canvas.axes[:3]
    assert len({panel.get_xlim() for panel in flat}) == 1
    assert flat[0].get_xlim()[0] < -1.4 < 0 < flat[0].get_xlim()[1]
    assert [panel.get_title() for panel in flat] == ["full course", "early course", "none"]
    assert names(canvas) == ["steered", "no longer steered", "never steered", "first step"]
    # the 16 steered steps of the early course, then the others
    assert [len(marks.get_offsets()) for marks in flat[1].collections[-3:]] == [16, 24, 1]
    assert [panel.name for panel in canvas.axes[6:]] == ["3d"] * 3
    assert note(canvas) == (
        "40 analysed steps per training; seeds 0, 1, 2; contours: Z = XY; marks: means over seeds; thin lines: single "
        "seeds."
    )


def test_normalised_trajectories_say_so(tmp_path, draw):
    spec = {"analysis": "dynamics", "modules": ["o_proj"], "normalised": True, "saddle": False}
    canvas = draw({"kind": "trajectory", "trajectory": spec}, trajectories(tmp_path, seeds=(0,)))
    assert canvas.axes[0].get_ylabel() == r"$W_o$, state Y$/\|W\|\|\bar{a}\|$"
    assert canvas.axes[0].get_xlim()[0] > -1


def test_cosines_with_their_onset(tmp_path, draw):
    canvas = draw({"kind": "cosine", "cosine": {"analysis": "dynamics"}, "labels": LABELS}, trajectories(tmp_path))
    [panel] = canvas.axes
    assert names(canvas) == [
        "full course (onset 13 in 3 of 3 seeds)",
        "early course (onset 13 in 3 of 3 seeds)",
        "none (no onset)",
    ]
    assert panel.get_ylabel() == r"$\cos(\bar{g}, v)$"
    assert panel.get_xlabel() == "optimizer step"
    assert len(panel.lines[0].get_xdata()) == 40


def test_running_means_are_within_a_phase_and_told(tmp_path, draw):
    cells = trajectories(tmp_path, seeds=(0,))
    spec = {"analysis": "dynamics", "saddle": False}
    early = {"rows": ["steer_early"]}
    raw = draw({"kind": "trajectory", "trajectory": spec, **early}, cells)
    smooth = draw({"kind": "trajectory", "trajectory": spec | {"smooth": 40}, **early}, cells)
    assert note(smooth).endswith("running means over 40 analysed steps.")

    def steered(canvas):
        return canvas.axes[0].collections[-3].get_offsets()

    assert steered(smooth)[:, 0].mean() < -0.5  # the pushes after it, above 0, are not among them
    assert steered(smooth)[:, 0].std() < steered(raw)[:, 0].std() / 2


def test_what_does_not_fit_is_broken_into_lines(tmp_path, draw):
    long = "A title that is much longer than the single panel of this figure is wide, by far"
    labels = {"sft": "not steered at all", "base": "before any training", "steer": "steered to the end"}
    rows = {"rows": ["base", "sft", "steer"], "labels": labels}
    canvas = draw({"title": long, "columns": [TRAIT], **rows}, swept(tmp_path))
    canvas.draw_without_rendering()  # at the resolution of the screen
    assert "\n" in canvas._suptitle.get_text()
    for part in (canvas._suptitle, canvas.legends[0]):
        assert part.get_window_extent().width <= canvas.bbox.width


def test_rows_are_scattered_by_level(tmp_path, draw):
    spec = {"benchmark": "detectors", "pairs": [PAIR, PAIR | {"y": "dp"}], "levels": LEVELS}
    canvas = draw({"kind": "scatter", "scatter": spec}, [detectors_cell(tmp_path)])
    panel, empty = canvas.axes
    assert [len(marks.get_offsets()) for marks in panel.collections] == [79, 80, 80]  # one row has no score
    assert names(canvas) == ["normal", "level I", "level II"]
    assert "level II n = 80" in note(canvas)
    assert [text.get_text() for text in empty.texts] == ["n = 0"]


def test_roc_curves_by_level(tmp_path, draw):
    scores = {"probe_cos": "probe cosine", "probe_proj": "probe projection", "dp": r"$\Delta p$"}
    spec = {"benchmark": "detectors", "scores": scores, "levels": {"": "all levels", "2": "level II"}}
    canvas = draw({"kind": "roc", "roc": spec}, [detectors_cell(tmp_path)])
    every, second = canvas.axes
    assert [text.get_text() for text in every.get_legend().get_texts()] == [
        "probe cosine (0.940)",
        "probe projection (0.810)",
        r"$\Delta p$ (not measured)",
    ]
    assert second.get_legend().get_texts()[1].get_text() == "probe projection (not measured)"
    assert list(every.lines[1].get_ydata()) == [0, 0.7, 0.95, 1]
    assert note(canvas).startswith("n = 240 rows; seed 0;")


def test_the_same_results_give_the_same_bytes(tmp_path, draw):
    cells = trajectories(tmp_path, seeds=(0,))
    written = []
    for _ in range(2):
        draw({"kind": "trajectory", "trajectory": {"analysis": "dynamics"}}, cells)
        written.append([(tmp_path / f"f.{ending}").read_bytes() for ending in ("pdf", "png")])
    assert written[0] == written[1]


def test_a_recipe_without_an_analysis_is_named(tmp_path, draw):
    cells = trajectories(tmp_path, seeds=(0,))
    with pytest.raises(ResultsError, match="no result of"):
        draw({"kind": "cosine", "cosine": {"analysis": "dynamics"}, "rows": ["base"]}, cells)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, "have columns"),
        ({"kind": "lines", "columns": [TRAIT]}, "set under lines"),
        ({"columns": [TRAIT], "lines": ALPHA}, "set under columns"),
        ({"kind": "cosine", "columns": [TRAIT], "cosine": {"analysis": "a"}}, "the other kinds have none"),
        ({"kind": "trajectory", "cosine": {"analysis": "a"}}, "here are settings for cosine"),
        ({"kind": "bar", "columns": [TRAIT]}, '"kind"'),
    ],
)
def test_settings_of_another_kind_are_refused(spec, told):
    with pytest.raises(ConfigurationError, match=told):
        validated(Figure, {**COMMON, **spec}, "figures.f")


def test_a_figure_names_what_it_needs():
    figure = validated(Figure, {**COMMON, "kind": "lines", "columns": [TRAIT], "lines": ALPHA}, "f")
    assert set(figure.recipes()) == {"sft", "base", "steer_05", "steer", "steer_2", "pis"}
    figure = validated(Figure, {**COMMON, "kind": "cosine", "cosine": {"analysis": "dynamics"}}, "f")
    assert figure.benchmarks() == figure.required_benchmarks() == ("dynamics",)
    assert figure.metrics() == ()
