"""Attacks on refusals, reported: analyses of what they leave, the figures, and the published numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from attack_samples import TRIALS, analysed, direction_folder, search_folder, trial

from bulwark import analyses
from bulwark.analyses import abliteration, refusal_geometry
from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.statistics import wilson
from bulwark.reporting.figures import front, look, make_figure, progress
from bulwark.reporting.results import Cell, ResultsError, read_published
from bulwark.reporting.settings import Figure, Table
from bulwark.reporting.tables import make_table
from bulwark.settings import read_yaml, validated
from bulwark.steps import heretic, refusal_direction

CONFIG = Path(__file__).parents[3] / "config"
TABLES = sorted((CONFIG / "tables").glob("abliteration*.yaml"))
ICONOCLAST = ("iconoclast_published", "abliteration", "refusal_rate")
COMMON = {"title": "A figure", "study": "s"}
FRONT = {"kind": "front", "front": {"analysis": "abliteration"}}
PROGRESS = {"kind": "progress", "progress": {"analysis": "abliteration", "kl_at_most": 0.1}}
RESIDUALS = {"kind": "residuals", "residuals": {"analysis": "refusal_geometry", "most": 2}}


def told(cell: dict) -> dict:
    return json.loads(Path(cell["scores"]).read_text())


def values(cell: dict) -> dict:
    return {name: metric["value"] for name, metric in told(cell)["metrics"].items()}


def rows(cell: dict) -> list[dict]:
    return Cell(**{**cell, "scores": Path(cell["scores"])}).rows


@pytest.fixture
def search(tmp_path):
    return analysed(tmp_path, search_folder(tmp_path / "c"), "heretic")


@pytest.fixture
def direction(tmp_path):
    return analysed(tmp_path, direction_folder(tmp_path / "d"), "refusal_direction")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a figure and return its canvas."""
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])

    def drawn(spec: dict, cells: list[dict]):
        make_figure({**COMMON, **spec}, cells, None, tmp_path / "f.pdf", tmp_path / "f.png")
        return saved[-1]

    return drawn


def names(canvas) -> list[str]:
    return [text.get_text() for text in canvas.legends[0].get_texts()]


def note(canvas) -> str:
    return look.noted(canvas)


def test_what_a_search_reached_and_what_it_cost(search):
    found = values(search)
    assert list(found) == list(abliteration.METRICS)
    assert (found["trials"], found["front_size"]) == (7, 4)
    assert (found["base_refusal_rate"], found["refusal_rate"], found["kl"]) == (0.9, 0.05, 0.08)
    assert found["overrefusal_rate"] == pytest.approx(3 / 50)
    assert (found["exported_kl"], found["equal_verdicts"]) == (pytest.approx(0.081), 0.99)
    assert [found[f"refusal_rate_at_{of}"] for of in ("0_05", "0_1", "0_5")] == [0.4, 0.05, 0.01]
    assert (found["seconds"], found["seconds_per_trial"]) == (24.0, 2.0)
    assert (found["trials_to_50"], found["seconds_to_50"], found["trials_to_90"]) == (3, 16.0, 6)
    # (0.001, 1) adds nothing; steps at 0.04, 0.08 and 0.4, of four decades below 1 nat
    at = [1 + math.log10(kl) / 4 for kl in (0.04, 0.08, 0.4)]
    by_hand = (at[1] - at[0]) * 0.6 + (at[2] - at[1]) * 0.95 + (1 - at[2]) * 0.99
    assert found["hypervolume"] == pytest.approx(by_hand)
    metrics = told(search)["metrics"]
    assert (metrics["refusal_rate"]["n"], metrics["kl"]["n"], metrics["trials"]["n"]) == (100, 50, 7)


def test_rows_are_the_trials(search):
    found = rows(search)
    assert [row["number"] for row in found] == list(range(7))
    assert [row["passed"] for row in found] == [12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0]
    assert found[3]["gated"]
    assert found[5]["chosen"]
    assert found[5]["rate"] == 0.05
    assert found[2]["profile"] == {"attention": [0.0, 1.0], "mlp": [0.5, 0.0]}
    assert told(search)["reported"]["kl_at_most"] == 0.1


@pytest.mark.parametrize("kind", ["search", "direction", "geometry"])
def test_no_value_of_a_row_is_taken_for_one_of_a_metric(kind, tmp_path):
    """Tables read a metric from the rows where they have its name."""
    module = refusal_geometry if kind == "geometry" else abliteration
    checkpoint = (direction_folder if kind == "direction" else search_folder)(tmp_path / "c")
    cell = analysed(tmp_path, checkpoint, "r", module.__name__.split(".")[-1])
    assert not set(module.METRICS) & {key for row in rows(cell) for key in row}
    columns = [{"analysis": cell["benchmark"], "metric": name, "label": name} for name in module.METRICS]
    paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    frame = make_table({"title": "t", "study": "s", "columns": columns}, [cell], None, *paths)
    assert len(frame) == 1


def test_one_direction_has_candidates_and_no_trials(direction, tmp_path):
    found = values(direction)
    for name in ("trials", "front_size", "seconds_per_trial", "trials_to_50", "trials_to_90", "overrefusal_rate"):
        assert found[name] is None
    assert (found["refusal_rate"], found["kl"], found["seconds"]) == (0.3, 0.02, 25.0)
    assert (found["seconds_to_50"], found["seconds_to_90"]) == (25.0, None)  # 90 to 30 of 100
    assert found["refusal_rate_at_0_05"] == 0.3
    assert found["hypervolume"] == pytest.approx(-math.log10(0.02) / 4 * 0.7)
    assert [row["rate"] for row in rows(direction)] == [None, 0.3, None]
    assert [row["layer"] for row in rows(direction)] == [0, 1, 2]
    far = values(analysed(tmp_path / "far", direction_folder(tmp_path / "far" / "d", kl=0.2), "r"))
    assert far["seconds_to_50"] is None
    assert (far["refusal_rate_at_0_1"], far["refusal_rate_at_0_5"]) == (None, 0.3)


def test_geometry_is_told_at_the_layer_that_separates_most(tmp_path):
    cell = analysed(tmp_path, search_folder(tmp_path / "c"), "heretic", "refusal_geometry")
    expected = {"layers": 3, "silhouette": 0.6, "silhouette_layer": 2, "relative_norm": 1.0, "cos_means": 0.2}
    assert values(cell) == pytest.approx(expected)
    assert told(cell)["reported"]["prompts"] == {"harmful": 12, "harmless": 12}
    assert len(rows(cell)) == 72


def test_missing_files_are_named(tmp_path):
    checkpoint = search_folder(tmp_path / "c")
    manifest = json.loads(checkpoint.read_text())
    (checkpoint.parent / "geometry.json").unlink()
    with pytest.raises(RecordError, match=r"geometry\.json is missing"):
        refusal_geometry.analyse(manifest, checkpoint.parent, refusal_geometry.Settings())


def test_which_steps_they_apply_to():
    searched = validated(heretic.Settings, read_yaml(CONFIG / "steps" / "heretic.yaml")["settings"], "s")
    directed = read_yaml(CONFIG / "steps" / "refusal_direction.yaml")["settings"]
    directed = validated(refusal_direction.Settings, directed, "s")
    plain = searched.model_copy(update={"outcome": searched.outcome.model_copy(update={"geometry": False})})
    for settings, of_cost, of_geometry in ((searched, True, True), (directed, True, False), (plain, True, False)):
        assert analyses.applies("abliteration", settings) == of_cost
        assert analyses.applies("refusal_geometry", settings) == of_geometry
    assert not analyses.applies("abliteration", None)
    assert not analyses.applies("abliteration", abliteration.Settings())


def test_the_front_is_the_true_one():
    points = [{"divergence": kl, "rate": rate} for kl, rate in ((0.3, 0.1), (0.1, 0.5), (0.2, 0.6), (0.1, 0.4))]
    assert front.staircase(points) == [(0.1, 0.4), (0.3, 0.1)]


def test_front_shows_every_trial_and_the_one_taken(draw, search, direction):
    canvas = draw(FRONT | {"labels": {"heretic": "HERETIC"}}, [search, direction])
    [panel] = canvas.axes
    assert panel.get_xscale() == "log"
    shown = {tuple(map(tuple, marks.get_offsets())) for marks in panel.collections if len(marks.get_offsets())}
    assert ((0.2, 60.0),) in shown  # a trial that is not on the front
    assert ((3.0, 100.0),) in shown  # stopped by the gate
    assert ((0.3, 75.0),) in shown  # given up
    assert ((0.001, 100.0), (0.04, 40.0), (0.08, 5.0), (0.4, 1.0)) in shown
    steps = next(line for line in panel.lines if len(line.get_xdata()) == 5)
    assert steps.get_drawstyle() == "steps-post"
    assert list(steps.get_ydata()) == pytest.approx([100, 40, 5, 1, 1])
    stars = [line for line in panel.lines if line.get_marker() == "*"]
    assert [(star.get_xdata()[0], star.get_ydata()[0]) for star in stars] == [(0.08, 5.0), (0.02, 30.0)]
    low, high = wilson(0.05, 100)
    whiskers = panel.containers[0].lines[2][0].get_segments()[0]
    assert [y for _, y in whiskers] == pytest.approx([100 * low, 100 * high])
    assert names(canvas)[:2] == ["HERETIC", "refusal_direction"]
    assert "stopped by the KL gate, counted as 100 %" in names(canvas)
    assert "n = 100 harmful prompts per trial" in note(canvas)
    assert "7 trials per search" in note(canvas)
    assert "seed 0" in note(canvas)
    canvas.draw_without_rendering()
    assert canvas.texts[0].get_window_extent().width <= canvas.bbox.width
    assert panel.get_ylabel() == "refused harmful prompts (%)"
    assert "dashed: taken at KL ≤ 0.1" in note(canvas)
    assert [0.1, 0.1] in [list(line.get_xdata()) for line in panel.lines]


def test_a_bound_that_is_off_the_axis_is_not_announced_as_a_line(draw, tmp_path):
    trials = tuple(trial(number, kl, 50, chosen=number == 2) for number, kl in enumerate((0.001, 0.002, 0.004)))
    canvas = draw(FRONT, [analysed(tmp_path, search_folder(tmp_path / "c", trials), "heretic")])
    assert [0.1, 0.1] not in [list(line.get_xdata()) for line in canvas.axes[0].lines]
    assert "dashed" not in note(canvas)
    assert "taken at KL ≤ 0.1, which is off the axis" in note(canvas)


def test_a_kl_of_nought_has_a_place(draw, tmp_path):
    trials = (trial(0, 0.0, 90), *TRIALS[1:])
    canvas = draw(FRONT, [analysed(tmp_path, search_folder(tmp_path / "c", trials), "heretic")])
    assert canvas.axes[0].get_xscale() == "symlog"
    assert canvas.axes[0].get_xlim()[0] < 0


def test_seeds_share_a_front_and_have_a_star_each(draw, tmp_path):
    cells = [analysed(tmp_path, search_folder(tmp_path / f"c{seed}"), "heretic", seed=seed) for seed in (0, 1)]
    [panel] = draw(FRONT, cells).axes
    assert len([line for line in panel.lines if line.get_marker() == "*"]) == 2
    assert len([line for line in panel.lines if line.get_drawstyle() == "steps-post"]) == 1


def test_progress_begins_before_the_attack(search, direction):
    cell = Cell(**{**search, "scores": Path(search["scores"])})
    volume, refusals = progress.reached(cell, "seconds", 0.1)
    assert volume[0] == (0.0, 0.0)
    assert refusals[0] == (0.0, 90.0)
    # trial 1 is beyond the bound; 3 and 4 were stopped; 6 is beyond it again
    assert [value for _, value in refusals] == pytest.approx([90, 90, 90, 40, 40, 40, 5, 5])
    assert [place for place, _ in refusals][:2] == [0.0, 12.0]
    assert progress.reached(cell, "trials", None)[1][-1] == (7.0, 1.0)
    one = Cell(**{**direction, "scores": Path(direction["scores"])})
    assert progress.reached(one, "seconds", None)[1] == [(0.0, 90.0), (25.0, 30.0)]


def test_progress_means_over_seeds(draw, tmp_path, direction):
    cells = [
        analysed(tmp_path, search_folder(tmp_path / f"c{seed}", setup=10.0 + 10 * seed), "heretic", seed=seed)
        for seed in (0, 1)
    ]
    canvas = draw(PROGRESS, [*cells, direction])
    volume, refusals = canvas.axes
    assert names(canvas) == ["heretic", "refusal_direction"]
    assert refusals.get_title() == "fewest refusals so far at KL ≤ 0.1 nats"
    assert refusals.get_ylim() == (0, 100)
    assert volume.get_xlim()[0] == 0
    mean = next(line for line in refusals.lines if line.get_linewidth() == 1.8)
    assert mean.get_xdata()[-1] == 24.0  # where the first seed ends
    assert mean.get_ydata()[-1] == pytest.approx((5 + 90) / 2)
    assert "thin: single seeds" in note(canvas)
    by_trial = draw({"kind": "progress", "progress": {"analysis": "abliteration", "over": "trials"}}, cells)
    assert by_trial.axes[0].get_xlabel() == "trials"


def test_residuals_of_recipes_below_each_other(draw, tmp_path):
    cells = [
        analysed(tmp_path, search_folder(tmp_path / name), name, "refusal_geometry")
        for name in ("heretic", "a+heretic")
    ]
    canvas = draw(RESIDUALS | {"labels": {"heretic": "base", "a+heretic": "defended"}}, cells)
    assert len(canvas.axes) == 4
    assert [panel.get_title() for panel in canvas.axes[:2]] == ["layer 2, silhouette 0.60", "layer 3, silhouette 0.40"]
    assert canvas.axes[0].get_xlim() == canvas.axes[2].get_xlim()
    assert canvas.axes[0].get_aspect() == 1
    assert canvas.axes[2].get_ylabel().startswith("defended")
    assert names(canvas) == ["harmless prompts", "harmful prompts"]
    assert note(canvas).startswith("n = 12 harmless, n = 12 harmful; seed 0")
    with pytest.raises(ResultsError, match="has no layer 9: m has the layers 1 to 3"):
        draw({"kind": "residuals", "residuals": {"analysis": "refusal_geometry", "layers": [9]}}, cells)


@pytest.mark.parametrize("spec", [FRONT, PROGRESS])
def test_the_same_attacks_give_the_same_bytes(draw, tmp_path, search, direction, spec):
    written = []
    for _ in range(2):
        draw(spec, [search, direction])
        written.append([(tmp_path / f"f.{ending}").read_bytes() for ending in ("pdf", "png")])
    assert written[0] == written[1]


def test_figures_name_the_analysis_they_need():
    figure = validated(Figure, {**COMMON, **FRONT}, "f")
    assert figure.required_benchmarks() == ("abliteration",)
    with pytest.raises(ConfigurationError, match="here are settings for front"):
        validated(Figure, {**COMMON, **FRONT, "kind": "progress"}, "f")
    with pytest.raises(ConfigurationError, match="the other kinds have none"):
        validated(Figure, {**COMMON, **FRONT, "columns": [{"benchmark": "b", "metric": "m", "label": "l"}]}, "f")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_configured_tables_are_valid(path):
    table = validated(Table, read_yaml(path), str(path))
    for column in table.columns:
        if column.benchmark in ("abliteration", "refusal_geometry"):
            assert column.metric in analyses.module_of(column.benchmark).METRICS
    if table.published:
        assert read_published(CONFIG / "published" / f"{table.published}.yaml")


def test_published_numbers_as_printed():
    heretic_ones = read_published(CONFIG / "published" / "abliteration_heretic.yaml")
    assert heretic_ones["gemma-3-12b-it", "heretic", "abliteration", "refusal_rate"] == (pytest.approx(0.03), None)
    assert heretic_ones["gemma-3-12b-it", "heretic", "abliteration", "kl"][0] == 0.16
    theirs = read_published(CONFIG / "published" / "abliteration_iconoclast.yaml")
    eighty = {key[0]: value for key, value in theirs.items() if key[1:] == ICONOCLAST}
    assert len(eighty) == 12
    for model, (value, _) in eighty.items():
        count = value * (48 if model == "Qwen3-1.7B" else 80)
        assert count == pytest.approx(round(count))
    arditi = read_published(CONFIG / "published" / "abliteration_arditi.yaml")
    assert arditi["llama2-7b-chat", "refusal_direction", "refusal", "refusal_arditi"][0] == pytest.approx(0.07)


def test_no_published_difference_in_refusals_is_significant():
    from scipy.stats import fisher_exact

    theirs = read_published(CONFIG / "published" / "abliteration_iconoclast.yaml")
    least = {}
    for metric, count in (("refusal_rate", 80), ("refusal_rate_of_20", 20)):
        for (model, recipe, _, of), (value, _) in theirs.items():
            if (recipe, of) != (ICONOCLAST[0], metric):
                continue
            n = 48 if model == "Qwen3-1.7B" else count
            pair = [round(n * rate) for rate in (value, theirs[model, "heretic_1_2", "abliteration", metric][0])]
            least[model, n] = fisher_exact([[of_n, n - of_n] for of_n in pair])[1]
    assert len(least) == 16
    assert min(least.values()) == pytest.approx(0.120, abs=1e-3)
    assert least["llama3.1-8b-instruct", 20] == 1


def test_the_red_team_is_an_overlay_of_the_miniature():
    files = [CONFIG / "miniature.yaml", CONFIG / "red_team.yaml"]
    catalogue = loading.load(overlays.read(files, CONFIG), CONFIG)
    assert list(catalogue.studies) == ["abliteration_red_team"]
    assert len(catalogue.cells("abliteration_red_team")) == 15 * 2  # recipes, benchmarks, one seed
