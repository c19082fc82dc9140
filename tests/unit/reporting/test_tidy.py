"""Everything measured as one tidy table."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from score_samples import study_cells, write_scores

from bulwark.reporting.results import ResultsError
from bulwark.reporting.tidy import write_results


def written(folder: Path, cells: list[dict]) -> pd.DataFrame:
    write_results(cells, folder / "results.csv", folder / "results.parquet")
    return pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])


def test_there_is_a_row_per_checkpoint_and_metric_with_what_its_file_says(tmp_path):
    cells = study_cells(tmp_path)
    frame = written(tmp_path, cells)
    contents = [json.loads(Path(cell["scores"]).read_text()) for cell in cells]
    assert len(frame) == sum(len(content["metrics"]) for content in contents)
    key = ["model", "recipe", "seed", "benchmark", "metric"]
    assert not frame.duplicated(key).any()
    for content in contents:
        for name, metric in content["metrics"].items():
            place = (*(content[part] for part in key[:-1]), name)
            row = frame.set_index(key).sort_index().loc[place]
            assert row[["value", "stderr", "low", "high"]].to_list() == pytest.approx(
                [metric["value"], metric["stderr"], *metric["interval"]]
            )
            assert (row["n"], row["direction"]) == (metric["n"], "higher" if metric["higher_is_better"] else "lower")
            assert json.loads(Path(row["file"]).read_text()) == content


def test_both_files_say_the_same(tmp_path):
    frame = written(tmp_path, study_cells(tmp_path))
    parquet = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(frame, parquet, check_dtype=False)


def test_what_is_not_known_is_empty_and_not_a_number(tmp_path):
    metric = {"value": None, "stderr": None, "interval": None, "higher_is_better": None}
    [row] = written(tmp_path, [write_scores(tmp_path, "m", "base", 0, "b", {"x": metric})]).to_dict("records")
    assert row["n"] == 50
    for name in ("value", "stderr", "low", "high", "direction"):
        assert pd.isna(row[name])


def test_no_cells_are_a_table_without_rows_and_a_missing_file_is_named(tmp_path):
    assert list(written(tmp_path, []).columns)[:3] == ["model", "recipe", "seed"]
    cell = {"model": "m", "recipe": "r", "seed": 0, "benchmark": "b", "scores": tmp_path / "gone.json"}
    with pytest.raises(ResultsError, match=r"gone\.json is missing"):
        written(tmp_path, [cell])


def test_the_example_in_the_documents_does_what_it_says(tmp_path, capsys, monkeypatch):
    """Its five lines over a made-up study print the mean over seeds of each metric of each recipe."""
    page = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    folder = tmp_path / "results" / "reports" / "demo"
    folder.mkdir(parents=True)
    frame = written(folder, study_cells(tmp_path))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    [aside] = [line.split() for line in lines if " aside " in f"{line} "]
    metrics = lines[0].split()[1:]
    assert metrics == sorted(set(frame["metric"]))
    for name, shown in zip(metrics, aside[-len(metrics) :], strict=True):
        of = frame[(frame["recipe"] == "aside") & (frame["metric"] == name)]["value"]
        assert float(shown) == pytest.approx(sum(of) / len(of), abs=1e-5)


def test_the_documents_name_every_column(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")
    described = [line.split("|")[1] for line in page.split("## The tidy table")[1].splitlines() if line[:3] == "| `"]
    assert re.findall(r"`(\w+)`", "".join(described)) == list(written(tmp_path, []).columns)
