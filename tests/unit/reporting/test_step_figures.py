"""Figures of what happens at every step, and after every adversary: what is drawn is what the files say."""

import math

import pytest
from score_samples import draws, write_scores

from bulwark.errors import ConfigurationError
from bulwark.evaluation.metrics import metric
from bulwark.reporting.figures import make_figure
from bulwark.reporting.settings import Figure
from bulwark.settings import validated

COMMON = {"title": "A figure", "study": "s"}
SHOWN = {"benchmark": "cloze", "metric": "accuracy", "label": "facts"}
RATES = {"base": 0.9, "full": 0.95, "lora": 0.85, "tar": 0.1, "tar+full": 0.2, "tar+lora": 0.75}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a figure and return its canvas."""
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])

    def drawn(spec, cells):
        make_figure({**COMMON, **spec}, cells, None, tmp_path / "f.pdf", tmp_path / "f.png")
        return saved[-1]

    return drawn


def curve_cell(folder, recipe, seed, height, steps=(0, 10, 20)):
    rows = [{"curve": "outer", "step": k, "loss": height + k / 10 + seed, "win": None} for k in steps]
    rows += [{"curve": "outer", "step": k, "loss": height + k / 10 + seed + 2, "win": None} for k in steps]
    rows += [{"curve": "inner", "step": k, "loss": 100.0, "win": None} for k in steps]
    found = {"loss": {"value": height, "stderr": None, "interval": None, "n": 3, "higher_is_better": None}}
    return write_scores(folder, "m", recipe, seed, "watched", found, rows)


def curves(folder, **changes):
    cells = [curve_cell(folder, recipe, seed, {"full": 1.0, "tar+full": 5.0}[recipe], **changes)
             for recipe in ("full", "tar+full") for seed in (0, 1, 2)]  # fmt: skip
    panels = [{"y": "loss", "label": "loss", "where": {"curve": "outer"}}, {"y": "win", "label": "win rate"}]
    spec = {"kind": "curves", "curves": {"analysis": "watched", "panels": panels}, "labels": {"tar+full": "TAR"}}
    return spec, cells


def test_curves_are_means_over_seeds_with_their_range(draw, tmp_path):
    spec, cells = curves(tmp_path)
    canvas = draw(spec, cells)
    loss, win = canvas.axes
    first, second = loss.lines
    assert list(first.get_xdata()) == [0, 10, 20]
    assert list(first.get_ydata()) == [3.0, 4.0, 5.0], (
        "1 + k/10 + 1 for the middle seed, and 1 for the second row of a step"
    )
    assert list(second.get_ydata()) == [7.0, 8.0, 9.0]
    band = loss.collections[0].get_paths()[0].vertices
    assert (min(band[:, 1]), max(band[:, 1])) == (2.0, 6.0), "the seeds are 0, 1 and 2"
    assert not win.lines
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["full", "TAR"]
    note = " ".join(" ".join(text.get_text() for text in canvas.texts).split())
    assert "without a value: full (win rate), TAR (win rate)" in note
    assert "bands: range of the seeds" in note


def test_curves_are_smoothed_over_steps(draw, tmp_path):
    spec, cells = curves(tmp_path)
    spec["curves"]["panels"][0] |= {"smooth": 3}
    canvas = draw(spec, cells)
    assert list(canvas.axes[0].lines[0].get_ydata()) == [3.5, 4.0, 4.5]
    assert "loss: running means over 3 steps" in " ".join(text.get_text() for text in canvas.texts)


def measured(folder, recipes=RATES):
    cells = []
    for recipe, rate in recipes.items():
        for seed in (0,) if recipe == "base" else (0, 1):
            rows = [{"id": f"q{i}", "accuracy": value} for i, value in enumerate(draws(rate, 20, f"{recipe} {seed}"))]
            cells.append(
                write_scores(folder, "m", recipe, seed, "cloze", {"accuracy": metric(rows, "accuracy", True)}, rows)
            )
    return cells


ADVERSARIES = {"kind": "adversaries", "rows": ["base", "tar"], "labels": {"tar": "TAR", "lora": "adapters"}}


def test_every_adversary_has_a_field_with_its_value(draw, tmp_path):
    spec = ADVERSARIES | {"adversaries": {"shown": SHOWN, "attacks": ["full", "lora"]}}
    panel = draw(spec, measured(tmp_path)).axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["before", "full", "adapters"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["base", "TAR"]
    shades = panel.images[0].get_array()
    assert shades.tolist() == [pytest.approx([90, 95, 85]), pytest.approx([10, 20, 75])]
    assert [text.get_text() for text in panel.texts] == ["90.0", "95.0", "85.0", "10.0", "20.0", "75.0"]
    assert panel.images[0].get_clim() == (0, 100)


def test_what_is_before_the_attacks_can_be_left_out(draw, tmp_path):
    spec = ADVERSARIES | {"adversaries": {"shown": SHOWN, "attacks": ["lora"], "before": False}}
    panel = draw(spec, measured(tmp_path)).axes[0]
    assert panel.images[0].get_array().tolist() == [[pytest.approx(85)], [pytest.approx(75)]]


def test_adversaries_name_what_they_need():
    spec = {**COMMON, **ADVERSARIES, "adversaries": {"shown": SHOWN, "attacks": ["full", "lora.*"]}}
    figure = validated(Figure, spec, "f")
    assert figure.recipes() == ("base", "tar", "full", "lora.*", "tar+full", "tar+lora.*")
    assert figure.required_benchmarks() == ("cloze",)
    everything = spec | {"adversaries": {"shown": SHOWN, "attacks": "study"}}
    assert validated(Figure, everything, "f").of_study(("full",)).recipes() == ("base", "tar", "full", "tar+full")


def test_attacks_follow_the_rows_where_there_are_no_series():
    drawn = {"harm": SHOWN, "most": "highest", "against": [{**SHOWN, "label": "x"}], "attacks": "study"}
    figure = validated(Figure, {**COMMON, "kind": "attacks", "rows": ["base", "tar"], "attacks": drawn}, "f")
    assert figure.of_study(("full",)).attacks.series == {"base": ("full",), "tar": ("full",)}
    listed = validated(
        Figure, {**COMMON, "kind": "attacks", "rows": ["tar"], "attacks": drawn | {"attacks": ["lora"]}}, "f"
    )
    assert listed.recipes() == ("tar", "tar+lora")
    assert listed.trained() == ("tar+lora",)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "adversaries", "adversaries": {"shown": SHOWN, "attacks": ["full"]}}, "rows lists the recipes"),
        (
            {"kind": "attacks", "attacks": {"harm": SHOWN, "most": "highest", "against": [SHOWN]}},
            "set series, or rows and attacks",
        ),
        (
            {"kind": "curves", "columns": [SHOWN], "curves": {"analysis": "a", "panels": [{"y": "b", "label": "c"}]}},
            "none",
        ),
    ],
)
def test_wrong_settings_say_what_to_change(spec, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(Figure, {**COMMON, **spec}, "f")


def test_a_missing_value_is_told(draw, tmp_path):
    cells = measured(tmp_path, {"tar": 0.1, "tar+full": 0.5})
    none = write_scores(
        tmp_path, "m", "tar+lora", 0, "cloze",
        {"accuracy": {"value": None, "stderr": None, "interval": None, "n": 0, "higher_is_better": True}},
    )  # fmt: skip
    spec = {"kind": "adversaries", "rows": ["tar"], "adversaries": {"shown": SHOWN, "attacks": ["full", "lora"]}}
    canvas = draw(spec, [*cells, none])
    assert math.isnan(canvas.axes[0].images[0].get_array()[0].filled(math.nan)[2])
    assert "fields without a value: 1" in " ".join(" ".join(text.get_text() for text in canvas.texts).split())
