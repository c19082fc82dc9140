"""A table whose results are not all there: an error that says how to make them, or what is missing is shown as such."""

from pathlib import Path

import pandas as pd
import pytest
from score_samples import sep_cell, study_cells, tasks_cell

from bulwark.config import overlays
from bulwark.errors import ConfigurationError
from bulwark.reporting.results import Results, ResultsError
from bulwark.reporting.tables import make_table

SPEC = {
    "title": "T",
    "study": "aside",
    "columns": [
        {"benchmark": "sep", "metric": "separation", "label": "SEP score"},
        {"benchmark": "sep", "metric": "utility", "label": "utility"},
        {"benchmark": "tasks", "metric": "accuracy", "label": "task accuracy"},
    ],
    "averages": [{"label": "mean", "of": ["utility", "task accuracy"]}],
}
COMMAND = "snakemake --configfile mine.yaml -c2 --"


def made(folder, cells, **told):
    paths = [folder / f"table.{ending}" for ending in ("csv", "md", "tex")]
    return make_table(told.pop("spec", SPEC), cells, None, *paths, **told), *(path.read_text() for path in paths[1:])


def cells_of(folder):
    cells = []
    for recipe in ("vanilla", "aside"):
        for seed in (0, 1):
            cells.append(sep_cell(folder, "m", recipe, seed, [0, 1, 0, 1], [1, 1, 1, 0]))
            cells.append(tasks_cell(folder, "m", recipe, seed, [1, 1, 0, 1]))
    return cells


def row_of(markdown, recipe):
    return next(line for line in markdown.splitlines() if f"| {recipe} |" in line)


def test_a_missing_cell_is_an_error_that_names_it_and_the_command_that_makes_it(tmp_path):
    cells = cells_of(tmp_path)
    gone = Path(cells[-1]["scores"])
    gone.unlink()
    with pytest.raises(ResultsError) as caught:
        made(tmp_path, cells, command=COMMAND)
    for part in ("tasks for m, aside, seed 1", f"Make it with: {COMMAND} {gone}"):
        assert part in str(caught.value)
    assert not (tmp_path / "table.csv").exists()


def test_the_command_has_the_overlays_of_the_configuration(tmp_path):
    config = Path(__file__).parents[3] / "config"
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine")
    read = overlays.read([config / "miniature.yaml", mine], config)
    assert read.command.startswith("snakemake --configfile ")
    assert read.command.endswith(f"miniature.yaml {mine} -c2 --")
    assert overlays.read([], config).command == "snakemake -c2 --"


def test_the_option_is_true_or_false():
    assert overlays.shows_partly({"partial": "True"})
    assert not overlays.shows_partly({})
    with pytest.raises(ConfigurationError, match="write partial=true or partial=false"):
        overlays.shows_partly({"partial": "yes"})


def test_what_is_missing_is_shown_as_missing_if_that_is_asked_for(tmp_path):
    cells = cells_of(tmp_path)
    whole, *_ = made(tmp_path, cells)
    assert "missing" not in whole
    gone = Path(cells[-1]["scores"])  # of one seed of two
    gone.unlink()
    frame, markdown, latex = made(tmp_path, cells, missing=[str(gone)], command=COMMAND)
    assert list(frame["missing"]) == ["", "tasks.accuracy_percent, mean"]
    key = "tasks.accuracy_percent.value"
    assert frame[key].isna().to_list() == [False, True], "a mean over the seed that is there is another number"
    assert frame[key][0] == whole[key][0]
    assert "missing" not in row_of(markdown, "vanilla")
    assert row_of(markdown, "aside").count("missing") == 2
    assert row_of(markdown, "aside").startswith("| m | aside | 0, 1 | ")
    assert "| missing | – |" in row_of(markdown, "aside")
    assert "Missing: 1 of 8 results have not been made" in markdown
    assert f"`{COMMAND} {gone}`" in markdown
    assert "missing" in latex
    assert pd.read_csv(tmp_path / "table.csv")["missing"].to_list()[1] == "tasks.accuracy_percent, mean"


def test_without_any_result_every_cell_is_missing_and_none_is_read(tmp_path):
    cells = cells_of(tmp_path)
    for cell in cells:
        Path(cell["scores"]).unlink()
    frame, markdown, _ = made(tmp_path, cells, missing=[cell["scores"] for cell in cells])
    assert len(frame) == 2
    assert row_of(markdown, "aside").count("missing") == 4


def test_only_what_is_told_to_be_missing_may_be(tmp_path):
    cells = cells_of(tmp_path)
    Path(cells[0]["scores"]).unlink()
    Path(cells[-1]["scores"]).unlink()
    with pytest.raises(ResultsError, match="sep for m, vanilla, seed 0"):
        made(tmp_path, cells, missing=[cells[-1]["scores"]])


def test_a_worst_case_is_missing_where_one_of_its_attacks_is(tmp_path):
    """The worst of those that are there would show a defense as stronger than it is."""
    cells = study_cells(tmp_path, n=20)
    column = {"benchmark": "sep", "metric": "separation", "label": "worst"}
    case = {"utility": {"benchmark": "sep", "metric": "utility"}, "loss": 0.5, "harm": "highest"}
    attacked = [
        sep_cell(tmp_path, "miniature", f"vanilla+{name}", seed, [0, 1] * 10, [1] * 20)
        for name in "ab"
        for seed in (0, 1)
    ]
    spec = {
        "title": "T",
        "study": "s",
        "rows": ["vanilla"],
        "columns": [{**column, "worst_case": {**case, "attacks_on": {"vanilla": ["a", "b"]}}}],
    }
    every = [*cells, *attacked]
    frame, *_ = made(tmp_path, every, spec=spec)
    assert "missing" not in frame
    gone = attacked[-1]["scores"]
    Path(gone).unlink()
    frame, markdown, _ = made(tmp_path, every, spec=spec, missing=[gone])
    assert row_of(markdown, "vanilla").count("missing") == 1
    assert Results(every, [gone]).lacks("miniature", "vanilla+b", "sep")
    spec["columns"][0] = {**column, "average": {"attacks": ["a"]}}
    frame, *_ = made(tmp_path, every, spec=spec, missing=[gone])
    assert "missing" not in frame, "the mean of the other attack is there"
