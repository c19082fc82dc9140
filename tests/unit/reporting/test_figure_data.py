"""The CSV beside a figure holds what is drawn: every mark with its place, its series and its panel."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from score_samples import write_scores

from bulwark.reporting.figures import make_figure

COMMON = {"title": "A figure", "study": "s"}
VALUES = {("base", "a"): 0.2, ("base", "b"): 0.4, ("aside", "a"): 0.1, ("aside", "b"): 0.05}


def metric(value):
    return {
        "value": value,
        "stderr": 0.02,
        "interval": [value - 0.04, value + 0.03],
        "n": 80,
        "higher_is_better": False,
    }


@pytest.fixture
def data(tmp_path):
    """Draw a figure; the rows of its CSV, numbers as numbers."""

    def drawn(spec, cells):
        make_figure({**COMMON, **spec}, cells, None, tmp_path / "f.pdf", tmp_path / "f.png", tmp_path / "f.csv")
        with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            {key: float(value) if key in ("x", "y", "low", "high") and value else value for key, value in row.items()}
            for row in rows
        ]

    return drawn


def rates(folder):
    return [
        write_scores(folder, model, recipe, 0, "attacks", {"success": metric(value)})
        for (recipe, model), value in VALUES.items()
    ]


@pytest.mark.parametrize("kind", ["bars", "beside"])
def test_bars_have_their_height_and_their_models_name(tmp_path, data, kind):
    columns = [{"benchmark": "attacks", "metric": "success", "label": "attack success"}]
    rows = data({"kind": kind, "columns": columns, "rows": ["base", "aside"]}, rates(tmp_path))
    bars = [row for row in rows if row["mark"] == "bar"]
    of = (lambda row: row["series"]) if kind == "bars" else (lambda row: row["title"])
    assert {(of(row), row["at"]): row["y"] for row in bars} == pytest.approx({k: 100 * v for k, v in VALUES.items()})
    whiskers = sorted((row["at"], row["low"], row["high"]) for row in rows if row["mark"] == "whisker")
    expected = sorted((model, 100 * value - 4, 100 * value + 3) for (_, model), value in VALUES.items())
    assert [row[0] for row in whiskers] == [row[0] for row in expected]
    assert [row[1:] for row in whiskers] == [pytest.approx(row[1:]) for row in expected]
    assert len(rows) == 8, "and nothing else: no caps of whiskers"


def test_lines_and_bands_of_layers(tmp_path, data):
    values = {"base": [0.5, 0.7, 0.9], "aside": [1.0, 0.95, 0.9]}
    cells = [
        write_scores(tmp_path, "m", recipe, 0, "separability", {f"matched_{n}": metric(v) for n, v in enumerate(of)})
        for recipe, of in values.items()
    ]
    panels = [{"metric": "matched", "label": "matched words", "line": 0.5}]
    spec = {"kind": "layers", "layers": {"benchmark": "separability", "y": "accuracy", "panels": panels}}
    rows = data({**spec, "rows": ["base", "aside"], "labels": {"aside": "ASIDE"}}, cells)
    assert {row["y_axis"] for row in rows} == {"accuracy"}
    for recipe, name in (("base", "base"), ("aside", "ASIDE")):
        own = [row for row in rows if row["series"] == name]
        line = [(row["x"], row["y"]) for row in own if row["mark"] == "line"]
        assert line == [(n, pytest.approx(v)) for n, v in enumerate(values[recipe])]
        band = [(row["x"], row["low"], row["high"]) for row in own if row["mark"] == "band"]
        assert band == [(n, pytest.approx(v - 0.04), pytest.approx(v + 0.03)) for n, v in enumerate(values[recipe])]
    assert [(row["x"], row["y"]) for row in rows if not row["series"]] == [("", 0.5)], "the line of chance"


TOKENS = [
    ["name", "instruction", 2.0],
    [" it", "instruction", 1.0],
    [" cup", "data", -0.25],
    [" say, \n", "probe", 0.5],
]


def concept(folder):
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(n), "tokens": [*TOKENS, *([" x", "data", float(v)] for v in rng.normal(size=40))], "executed": n > 1}
        for n in range(4)
    ]
    return [write_scores(folder, "m", "aside", 0, "concept", {"probe_active": metric(0.5)}, rows)], rows


def test_histograms_have_every_bin_of_every_part(tmp_path, data):
    cells, prompts = concept(tmp_path)
    parts = {"data": "data without the probe", "probe": "the probe"}
    spec = {"kind": "activations", "activations": {"benchmark": "concept", "parts": parts, "bins": 8}}
    for by_execution in (False, True):
        spec["activations"]["by_execution"] = by_execution
        rows = data(spec, cells)
        for panel, chosen in ((1, prompts[2:]), (2, prompts[:2])) if by_execution else ((1, prompts),):
            for part, label in parts.items():
                own = [row for row in rows if (row["panel"], row["series"]) == (str(panel), label)]
                bins = [row for row in own if row["mark"] == "bin"]
                edges = [bins[0]["low"], *(row["high"] for row in bins)]
                values = [value for row in chosen for _, of, value in row["tokens"] if of == part]
                heights, _ = np.histogram(values, edges, density=True)
                assert [row["y"] for row in bins] == pytest.approx(heights, rel=1e-4)
                assert len([row for row in own if row["mark"] == "line"]) == (400 if len(set(values)) > 1 else 0)


def test_tokens_have_their_text_part_and_activation(tmp_path, data):
    cells, prompts = concept(tmp_path)
    rows = data({"kind": "tokens", "tokens": {"benchmark": "concept", "record": 1}}, cells)
    assert [[row["text"], row["series"], row["y"]] for row in rows] == [
        [text, part, pytest.approx(value, rel=1e-5)] for text, part, value in prompts[1]["tokens"]
    ]
    assert [row["x"] for row in rows] == list(range(44))
