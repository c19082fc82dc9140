"""Figures of what is inside a model: layers, activations, the tokens of a prompt, and metrics beside each other."""

from __future__ import annotations

import pytest
from score_samples import write_scores

from bulwark.errors import ConfigurationError
from bulwark.reporting.figures import look, make_figure
from bulwark.reporting.results import ResultsError
from bulwark.reporting.settings import Figure
from bulwark.settings import validated

COMMON = {"title": "A figure", "study": "s"}
RECIPES = ("base", "aside")


def metric(value, n=80, higher=None):
    interval = None if value is None else [value - 0.05, value + 0.05]
    return {"value": value, "stderr": 0.02, "interval": interval, "n": n, "higher_is_better": higher}


def layered_cells(folder, values=None):
    values = values or {"base": [0.5, 0.7, 0.9], "aside": [1.0, 0.95, 0.9]}
    return [
        write_scores(
            folder, "m", recipe, 0, "separability",
            {"matched_mean": metric(0.9), **{f"matched_{layer}": metric(v) for layer, v in enumerate(of_recipe)}},
        )
        for recipe, of_recipe in values.items()
    ]  # fmt: skip


def concept_cells(folder, executed=(True, False, False, True, False)):
    cells = []
    for recipe, shift in (("base", 1.0), ("aside", -1.0)):
        rows = [
            {
                "id": f"sep-{number}",
                "tokens": [["name", "instruction", 2.0], [" it", "instruction", 1.0]]
                + [[" cup", "data", shift + 0.1 * number]] * 3
                + [[" say", "probe", 2 * shift], [" root", "probe", -0.5]],
                "executed": executed[number],
            }
            for number in range(5)
        ]
        cells.append(write_scores(folder, "m", recipe, 0, "concept", {"probe_active": metric(0.5)}, rows))
    return cells


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a figure and return its canvas."""
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])

    def drawn(spec, cells, published=None):
        make_figure({**COMMON, **spec}, cells, published, tmp_path / "f.pdf", tmp_path / "f.png")
        return saved[-1]

    return drawn


LAYERS = {
    "kind": "layers",
    "layers": {
        "benchmark": "separability",
        "y": "accuracy",
        "panels": [{"metric": "matched", "label": "matched words", "limits": [0.4, 1.0], "line": 0.5}],
    },
    "rows": list(RECIPES),
    "labels": {"aside": "ASIDE"},
}


def test_a_line_has_every_layer_and_its_interval(tmp_path, draw):
    canvas = draw(LAYERS, layered_cells(tmp_path))
    [panel] = canvas.axes
    lines = {line.get_color(): line for line in panel.lines if len(line.get_xdata()) == 3}
    assert sorted([list(line.get_ydata()) for line in lines.values()]) == [[0.5, 0.7, 0.9], [1.0, 0.95, 0.9]]
    assert all(list(line.get_xdata()) == [0, 1, 2] for line in lines.values())
    band = panel.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.45, 0.95))
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("layer (0: embeddings)", "accuracy")
    low, high = panel.get_ylim()
    assert low < 0.4 < 1.0 < high < 1.05
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["base", "ASIDE"]
    assert look.noted(canvas) == "n = 80 records; seed 0; bands: 95 % interval over records; dotted: chance."


def test_a_layer_without_a_value_is_left_out(tmp_path, draw):
    canvas = draw(LAYERS, layered_cells(tmp_path, {"base": [0.5, None, 0.9], "aside": [1.0, 1.0, 1.0]}))
    assert [0, 2] in [list(line.get_xdata()) for line in canvas.axes[0].lines]


def test_a_metric_that_is_not_of_layers_is_an_error(tmp_path, draw):
    spec = {
        **LAYERS,
        "layers": {"benchmark": "separability", "y": "x", "panels": [{"metric": "sharpness", "label": "x"}]},
    }
    with pytest.raises(ResultsError, match='no metric "sharpness_<layer>"'):
        draw(spec, layered_cells(tmp_path))


ACTIVATIONS = {
    "kind": "activations",
    "activations": {"benchmark": "concept", "parts": {"data": "data", "probe": "probe"}, "bins": 10},
    "rows": list(RECIPES),
}


def test_histograms_have_zero_in_the_middle_and_say_what_is_above_it(tmp_path, draw):
    canvas = draw(ACTIVATIONS, concept_cells(tmp_path))
    assert len(canvas.axes) == 2
    for panel in canvas.axes:
        low, high = panel.get_xlim()
        assert low == -high
        assert len(panel.patches) == 20
    # densities: the bars of each part cover an area of 1
    bars = canvas.axes[0].patches[:10]
    assert sum(bar.get_width() * bar.get_height() for bar in bars) == pytest.approx(1.0)
    told = [text.get_text() for text in canvas.axes[1].get_legend().get_texts()]
    assert told == ["0 % > 0", "0 % > 0"]
    assert [t.get_text() for t in canvas.axes[0].get_legend().get_texts()] == ["100 % > 0", "50 % > 0"]
    assert "n = 5 prompts; seed 0" in look.noted(canvas)


TOKENS = {
    "kind": "tokens",
    "tokens": {"benchmark": "concept", "record": 1, "underlined": {"probe": "the probe"}},
    "rows": list(RECIPES),
}


def test_a_tokens_colour_is_its_activation_over_the_largest(tmp_path, draw):
    import matplotlib

    canvas = draw(TOKENS, concept_cells(tmp_path))
    first = canvas.axes[0]
    assert [text.get_text() for text in first.texts] == ["name", "it", "cup", "cup", "cup", "say", "root"]
    colours = [patch.get_facecolor() for patch in first.patches]
    expected = matplotlib.colormaps["bwr"]
    # the largest is 2
    assert colours[0] == pytest.approx(expected(1.0))
    assert colours[1] == pytest.approx(expected(0.75))
    assert colours[6] == pytest.approx(expected(0.5 - 0.125))
    assert len(first.lines) == 2, "both tokens of the probe are underlined"
    places = [patch.get_y() for patch in first.patches]
    assert places[1] < places[2], "the data begin a line"
    assert "record sep-1; seed 0" in look.noted(canvas)


def test_a_record_that_is_not_there_is_an_error(tmp_path, draw):
    spec = {**TOKENS, "tokens": {"benchmark": "concept", "record": 5}}
    with pytest.raises(ResultsError, match="has 5 records; record 5 is asked for"):
        draw(spec, concept_cells(tmp_path))


def test_histograms_by_whether_the_probe_was_carried_out(tmp_path, draw):
    spec = {**ACTIVATIONS, "activations": ACTIVATIONS["activations"] | {"by_execution": True}}
    canvas = draw(spec, concept_cells(tmp_path))
    assert [panel.get_title() for panel in canvas.axes] == [
        "base, carried out (n = 2)",
        "base, not carried out (n = 3)",
        "aside, carried out (n = 2)",
        "aside, not carried out (n = 3)",
    ]
    silent = concept_cells(tmp_path / "silent", executed=[None] * 5)
    with pytest.raises(ResultsError, match="does not say which probes were carried out"):
        draw(spec, silent)


BESIDE = {
    "kind": "beside",
    "columns": [
        {"benchmark": "intervention", "metric": "execution_as_data", "label": "as data"},
        {"benchmark": "intervention", "metric": "execution_as_instruction", "label": "as an instruction"},
    ],
    "rows": ["ise", "aside"],
}


def intervention_cells(folder):
    made = {"ise": (0.3, 0.32), "aside": (0.1, 0.8)}
    return [
        write_scores(
            folder, "m", recipe, 0, "intervention",
            {"execution_as_data": metric(a, higher=False), "execution_as_instruction": metric(b)},
        )
        for recipe, (a, b) in made.items()
    ]  # fmt: skip


def test_metrics_stand_beside_each_other_on_one_scale(tmp_path, draw):
    printed = tmp_path / "p.yaml"
    printed.write_text(
        "results:\n- {benchmark: intervention, metric: execution_as_data, unit: ratio, values: {m: {aside: 0.14}}}\n"
    )
    canvas = draw(BESIDE, intervention_cells(tmp_path), printed)
    ise, aside = canvas.axes
    assert [patch.get_height() for patch in aside.patches] == pytest.approx([10, 80])
    assert [patch.get_height() for patch in ise.patches] == pytest.approx([30, 32])
    assert ise.get_ylim() == aside.get_ylim()
    assert ise.get_ylim()[0] == 0
    assert 85 < ise.get_ylim()[1] < 100
    [diamond] = [line for line in aside.lines if line.get_marker() == "D"]
    assert diamond.get_ydata()[0] == pytest.approx(14)
    assert "diamonds: published" in look.noted(canvas)
    assert [text.get_text() for text in aside.texts] == ["10.0", "80.0"]


def test_the_legend_names_what_only_a_later_model_or_panel_has(tmp_path, draw):
    """The first model has no value of one metric, the first recipe none of the other."""
    made = {
        ("ise", "a"): (None, None),
        ("ise", "b"): (0.3, None),
        ("aside", "a"): (None, 0.2),
        ("aside", "b"): (0.1, 0.8),
    }
    cells = [
        write_scores(
            tmp_path, model, recipe, 0, "intervention",
            {"execution_as_data": metric(a, higher=False), "execution_as_instruction": metric(b)},
        )
        for (recipe, model), (a, b) in made.items()
    ]  # fmt: skip
    canvas = draw(BESIDE, cells)
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["as data", "as an instruction"]
    colours = {patch.get_facecolor() for panel in canvas.axes for patch in panel.patches}
    assert {handle.get_facecolor() for handle in canvas.legends[0].legend_handles} == colours


@pytest.mark.parametrize("kind", ["layers", "activations", "tokens"])
def test_each_kind_has_its_settings_under_its_name(kind):
    with pytest.raises(ConfigurationError, match=f"{kind}: set under {kind}"):
        validated(Figure, {**COMMON, "kind": kind}, "a figure")


def test_beside_needs_columns():
    with pytest.raises(ConfigurationError, match="bars, beside and lines have columns"):
        validated(Figure, {**COMMON, "kind": "beside"}, "a figure")
