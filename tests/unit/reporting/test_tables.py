"""Tables: one frame, three formats, published numbers beside ours, and no silent gaps."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from score_samples import draws, sep_cell, study_cells, tasks_cell, write_scores

from bulwark.config import loading
from bulwark.config import overlays as layers
from bulwark.reporting.results import Results, ResultsError, read_published
from bulwark.reporting.settings import Table
from bulwark.reporting.tables import make_table
from bulwark.settings import ConfigurationError, merged, read_yaml, validated

CONFIG = Path(__file__).parents[3] / "config"
SPEC = {
    "title": "Separation_&_more",
    "caption": "100% of it.",
    "study": "aside",
    "columns": [
        {"benchmark": "sep", "metric": "separation", "label": "SEP score"},
        {"benchmark": "sep", "metric": "probe_in_data_rate", "label": "Probe in data", "percent": False},
        {"benchmark": "tasks", "metric": "accuracy", "label": "task accuracy", "if_measured": True},
    ],
    "labels": {"aside": "ASIDE"},
}


SEPARATION = SPEC["columns"][0]


def made(folder, spec, cells, published=None):
    paths = [folder / f"table.{ending}" for ending in ("csv", "md", "tex")]
    frame = make_table(spec, cells, published, *paths)
    return frame, *(path.read_text(encoding="utf-8") for path in paths)


def test_one_frame_three_formats(tmp_path):
    cells = study_cells(tmp_path, n=40)
    frame, csv, markdown, latex = made(tmp_path, SPEC, cells)
    assert list(frame["recipe"]) == ["base", "vanilla", "ise", "aside"]
    assert list(frame["seeds"]) == ["0", "0 1", "0 1", "0 1"]
    read = pd.read_csv(tmp_path / "table.csv")
    key = "sep.separation_percent.value"
    assert read[key].to_list() == pytest.approx(frame[key].to_list())
    assert "tasks.accuracy_percent.value" not in read
    found = Results(cells).estimate("miniature", "aside", "sep", "separation")
    value = f"{100 * found.value:.1f} ± {100 * found.stderr:.1f}"
    row = next(line for line in markdown.splitlines() if "ASIDE" in line)
    assert f"| miniature | ASIDE | 0, 1 | **{value}** | {found.n} | {100 * found.seed_spread:.1f} |" in row
    assert "| SEP score (%) ↑ | n | SD over seeds |" in markdown
    assert "| Probe in data ↓ | n | SD over seeds |" in markdown
    assert "published" not in markdown.lower()
    base = next(line for line in markdown.splitlines() if "| base |" in line)
    assert "| – |" in base
    assert r"\textbf{" + value.replace("±", r"$\pm$") + "}" in latex
    assert r"\caption{Separation\_\&\_more. 100\% of it." in latex
    assert r"\begin{tabular}{lllrrrrrr}" in latex
    assert r"\toprule" in latex
    assert r"\label{tab:table}" in latex
    assert csv.count("\n") == 5


def test_a_measured_optional_column_is_shown(tmp_path):
    cells = [sep_cell(tmp_path, "miniature", "aside", 0, [0, 1], [1, 1])]
    cells.append(tasks_cell(tmp_path, "miniature", "aside", 0, [1, 1, 0, 1]))
    frame, _, markdown, _ = made(tmp_path, SPEC, cells)
    assert frame["tasks.accuracy_percent.value"].item() == 75
    assert "task accuracy (%) ↑" in markdown


def test_published_numbers_stand_beside_ours(tmp_path):
    cells = [
        sep_cell(tmp_path, model, "aside", 0, [0, 0, 1], [1, 1, 1]) for model in ("qwen2.5-7b", "someone-elses-model")
    ]
    frame, _, markdown, _ = made(tmp_path, SPEC, cells, CONFIG / "published" / "aside.yaml")
    assert frame["sep.separation_percent.published"].to_list()[0] == pytest.approx(64.1)
    lines = {line.split("|")[1].strip(): line for line in markdown.splitlines() if line.startswith("|")}
    assert "64.1 ± 0.6" in lines["qwen2.5-7b"]
    assert "| – |" in lines["someone-elses-model"]
    assert "sep.probe_in_data_rate.published" not in frame


def test_the_difference_from_a_published_number_has_the_errors_that_are_known(tmp_path):
    cells = [sep_cell(tmp_path, "qwen2.5-7b", "aside", 0, [0, 0, 1, 1], [1, 1, 1, 1])]
    frame, csv, markdown, latex = made(tmp_path, SPEC, cells, CONFIG / "published" / "aside.yaml")
    key = "sep.separation_percent."
    assert frame[key + "difference"].to_list() == pytest.approx([50.0 - 64.1])
    own = frame[key + "stderr"][0]
    assert frame[key + "difference_stderr"].to_list() == pytest.approx([(own**2 + 0.6**2) ** 0.5])
    assert f"−14.1 ± {frame[key + 'difference_stderr'][0]:.1f} |" in markdown
    assert "ours − published" in markdown
    assert r"ours $-$ published" in latex
    assert "sep.separation_percent.difference" in csv
    assert "difference has the errors" in markdown


@pytest.mark.parametrize(("second", "bold"), [(0.6, True), (0.87, False)])
def test_the_best_is_bold_only_where_every_other_row_is_significantly_worse(tmp_path, second, bold):
    rates = {"base": 0.2, "vanilla": second, "aside": 0.9}
    cells = [
        sep_cell(tmp_path, "m", recipe, 0, draws(1 - rate, 100, recipe), [1] * 100) for recipe, rate in rates.items()
    ]
    frame, csv, markdown, latex = made(tmp_path, {**SPEC, "columns": [SEPARATION]}, cells)
    assert markdown.count("**") == 2 * bold
    assert latex.count(r"\textbf") == bold
    assert ("sep.separation_percent.best" in frame) == bold
    assert ("p < 0.05" in markdown) == bold
    if bold:
        assert frame["sep.separation_percent.best"].to_list() == [False, False, True]
        assert re.search(r"\| ASIDE \| 0 \| \*\*90\.0 ± \d\.\d\*\* \|", markdown)
        assert csv.splitlines()[3].endswith("True")


def test_the_best_is_that_of_a_model_and_lower_where_the_column_says_so(tmp_path):
    rates = {("one", "vanilla"): 0.4, ("one", "aside"): 0.9, ("two", "vanilla"): 0.9, ("two", "aside"): 0.88}
    cells = [
        sep_cell(tmp_path, model, recipe, 0, draws(1 - rate, 100, recipe), [1] * 100)
        for (model, recipe), rate in rates.items()
    ]
    columns = [{**SEPARATION, "better": "lower"}, SPEC["columns"][1]]
    frame, *_ = made(tmp_path, {**SPEC, "columns": columns}, cells)
    assert frame["sep.separation_percent.best"].to_list() == [True, False, False, False]
    assert frame["sep.probe_in_data_rate.best"].to_list() == [False, True, False, False], "fewer probes are better"


def test_a_missing_scores_file_is_named(tmp_path):
    cells = study_cells(tmp_path, n=10)
    Path(cells[2]["scores"]).unlink()
    with pytest.raises(ResultsError, match=r"vanilla/seed1/sep\.json is missing.*snakemake"):
        made(tmp_path, SPEC, cells)
    assert not (tmp_path / "table.csv").exists()


def test_a_missing_recipe_of_one_model_is_named(tmp_path):
    cells = study_cells(tmp_path, models=("a", "b"), n=10)
    with pytest.raises(ResultsError, match=r'no result of "sep" for b, aside: results/scores/b/aside'):
        made(tmp_path, SPEC, [c for c in cells if (c["model"], c["recipe"]) != ("b", "aside")])
    with pytest.raises(ResultsError, match="no results to show"):
        made(tmp_path, SPEC, [])


def test_a_wrong_metric_gets_the_nearest_name(tmp_path):
    spec = {**SPEC, "columns": [{"benchmark": "sep", "metric": "separatoin", "label": "x"}]}
    with pytest.raises(ResultsError, match=r'no metric "separatoin".*"separation"'):
        made(tmp_path, spec, study_cells(tmp_path, n=10))


def test_benchmarks_of_one_row_need_the_same_seeds(tmp_path):
    cells = [sep_cell(tmp_path, "m", "aside", seed, [0, 1], [1, 1]) for seed in (0, 1)]
    cells.append(tasks_cell(tmp_path, "m", "aside", 0, [1, 1]))
    with pytest.raises(ResultsError, match=r"tasks was measured at the seeds \[0\].*\[0, 1\]"):
        made(tmp_path, SPEC, cells)


def test_scores_that_are_anothers_or_stale_are_refused(tmp_path):
    cell = sep_cell(tmp_path, "m", "aside", 0, [0, 1], [1, 1])
    with pytest.raises(ResultsError, match=r'says recipe "aside" where "ise" belongs'):
        made(tmp_path, SPEC, [{**cell, "recipe": "ise"}])
    with pytest.raises(ResultsError, match="given for the same cell"):
        made(tmp_path, SPEC, [cell, cell])
    rows = Path(cell["scores"]).with_suffix(".records.jsonl")
    rows.write_text(rows.read_text().replace('"separation": 0', '"separation": 1'))
    with pytest.raises(ResultsError, match=r"separation is 0\.5, but its records say 1\.0"):
        made(tmp_path, SPEC, [cell])
    Path(cell["scores"]).write_text("{")
    with pytest.raises(ResultsError, match="not readable"):
        made(tmp_path, SPEC, [cell])


def test_a_metric_that_nothing_counts_for_is_a_dash(tmp_path):
    _, _, markdown, _ = made(tmp_path, SPEC, [sep_cell(tmp_path, "m", "aside", 0, [0, 1], [0, 0])])
    assert "| – | 0 |" in markdown


def test_a_metric_without_rows_takes_the_error_of_its_files(tmp_path):
    cells = [
        write_scores(
            tmp_path, "m", "aside", seed, "detector",
            {"auc": {"value": 0.9 + seed / 100, "stderr": 0.02, "interval": [0.86, 0.94], "higher_is_better": True}},
        )
        for seed in (0, 1)
    ]  # fmt: skip
    found = Results(cells).estimate("m", "aside", "detector", "auc")
    assert (found.value, found.stderr, found.n, found.rate) == (pytest.approx(0.905), 0.02, 50, False)
    assert found.seed_spread == pytest.approx(0.00707, abs=1e-5)


def test_published_numbers_are_fractions_when_read():
    numbers = read_published(CONFIG / "published" / "aside.yaml")
    assert numbers["mistral-7b-v0.3", "aside", "sep", "separation"] == (pytest.approx(0.921), pytest.approx(0.006))
    rate, error = numbers["llama3.1-8b", "vanilla", "bipia_code_published", "attack_success_rate_as_published"]
    assert (rate, error) == (pytest.approx(0.288), None)
    # +12.3 … +44.1 points over vanilla: both ends are in the paper's text.
    gains = {
        model: numbers[model, "aside", "sep", "separation"][0] - numbers[model, "vanilla", "sep", "separation"][0]
        for model in ("llama2-7b", "llama2-13b", "llama3.1-8b", "qwen2.5-7b", "mistral-7b-v0.3")
    }
    assert (round(min(gains.values()), 3), round(max(gains.values()), 3)) == (0.123, 0.441)
    assert len(numbers) == 3 * 6 * 4 + 8 * 5 * 3
    assert read_published(None) == {}


@pytest.mark.parametrize("path", sorted((CONFIG / "tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configured_tables_are_valid(path):
    data = read_yaml(path)
    if like := data.pop("like", None):
        data = merged(read_yaml(path.with_stem(like)), data)
    table = validated(Table, data, str(path))
    assert set(table.required_benchmarks()) <= set(table.benchmarks())
    if table.published:
        assert (CONFIG / "published" / f"{table.published}.yaml").exists()


def test_an_unknown_key_of_a_table_gets_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r'unknown key "captoin".*"caption"'):
        validated(Table, {**SPEC, "captoin": "x"}, "test")


def test_scales_that_end_and_averages(tmp_path):
    columns = [
        {"benchmark": "sep", "metric": metric, "label": label, "out_of": 9}
        for metric, label in (("separation", "one"), ("utility", "two"))
    ]
    spec = SPEC | {"columns": columns, "averages": [{"label": "both", "of": ["one", "two"]}], "compact": True}
    published = tmp_path / "published.yaml"
    results = [
        {"benchmark": "sep", "metric": metric, "unit": "0 to 9", "values": {"miniature": {"aside": value}}}
        for metric, value in (("separation", 9.0), ("utility", 4.5))
    ]
    published.write_text(json.dumps({"results": results}))
    frame, _, markdown, _ = made(tmp_path, spec, study_cells(tmp_path, n=40), published)
    last = frame.iloc[-1]
    one, two = (last[f"sep.{metric}_of_9.value"] for metric in ("separation", "utility"))
    assert 0 < one <= 9
    assert last["both.value"] == pytest.approx((one + two) / 2)
    errors = [last[f"sep.{metric}_of_9.stderr"] for metric in ("separation", "utility")]
    assert last["both.stderr"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)
    assert last["both.published"] == pytest.approx(6.75)
    assert pd.isna(frame.iloc[0]["both.published"])
    names = [f"{name} (0 to 9) ↑ | published | ours − published" for name in ("one", "two", "both")]
    assert f"| {' | '.join(names)} |" in markdown


def test_an_average_of_fewer_columns_than_the_papers_says_so(tmp_path):
    columns = [
        {"benchmark": "sep", "metric": "separation", "label": "one"},
        {"benchmark": "sep", "metric": "utility", "label": "two"},
        {"benchmark": "absent", "metric": "separation", "label": "three", "if_measured": True},
    ]
    averages = [{"label": "all", "of": ["one", "two", "three"]}, {"label": "last", "of": ["two", "three"]}]
    spec = SPEC | {"columns": columns, "averages": averages, "compact": True}
    published = tmp_path / "published.yaml"
    average = {"benchmark": "average", "metric": "all", "unit": "percent", "values": {"miniature": {"aside": 67.5}}}
    published.write_text(json.dumps({"results": [average]}))
    frame, _, markdown, _ = made(tmp_path, spec, study_cells(tmp_path, n=40), published)
    last = frame.iloc[-1]
    assert last["all.published"] == pytest.approx(67.5)
    parts = [last[f"sep.{metric}_percent.value"] for metric in ("separation", "utility")]
    assert last["all.value"] == pytest.approx(sum(parts) / 2)
    assert "| all of 2 (%) ↑ | published, of 3 |" in markdown
    assert "last" not in markdown  # of a single column, it would be that column again


@pytest.mark.parametrize(("label", "percent", "told"), [("three", True, "no column"), ("two", False, "scales")])
def test_averages_are_of_columns_of_one_scale(label, percent, told):
    columns = [
        {"benchmark": "sep", "metric": "separation", "label": "one"},
        {"benchmark": "sep", "metric": "utility", "label": "two", "percent": percent},
    ]
    spec = SPEC | {"columns": columns, "averages": [{"label": "both", "of": ["one", label]}]}
    with pytest.raises(ConfigurationError, match=told):
        validated(Table, spec, "here")


def test_an_error_of_0_is_not_taken_for_certainty(tmp_path):
    """Where all records agree the standard error is 0, and the note says that the interval is not."""
    texts = []
    for obeyed in ([0] * 20, [0] * 19 + [1]):
        cells = [sep_cell(tmp_path / str(len(texts)), "m", "aside", 0, obeyed, [1] * 20)]
        paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
        make_table({"title": "t", "study": "s", "columns": [SEPARATION]}, cells, None, *paths)
        texts.append(paths[1].read_text())
    assert "100.0 ± 0 |" in texts[0]
    assert "± 0: all records agree; the interval is wider than that." in texts[0]
    assert "± 0:" not in texts[1]


def test_notes_are_shown_where_what_they_speak_of_is(tmp_path):
    spec = {
        "title": "t", "study": "s", "caption": "Always.",
        "columns": [SEPARATION, {"benchmark": "tasks", "metric": "accuracy", "label": "tasks", "if_measured": True}],
        "notes": [
            {"text": "On SEP.", "columns": ["SEP score", "tasks"]},
            {"text": "On tasks.", "columns": ["tasks"]},
            {"text": "On ISE.", "rows": ["ise"]},
            {"text": "On PIS.", "rows": ["pis"]},
            {"text": "On tasks of ISE.", "columns": ["tasks"], "rows": ["ise"]},
            {"text": "As printed.", "published": True},
        ],
    }  # fmt: skip
    paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    make_table(spec, study_cells(tmp_path, n=20), None, *paths)
    assert "\n\nAlways. On SEP. On ISE.\n\n" in paths[1].read_text()
    assert "Always. On SEP. On ISE. Means over seeds" in paths[2].read_text()


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"text": "x"}, "depends on columns, rows or published"),
        ({"text": "x", "columns": ["SEPS"]}, "no column's label"),
    ],
)
def test_a_note_on_nothing_or_on_what_no_column_is_is_refused(note, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(Table, {"title": "t", "study": "s", "columns": [SEPARATION], "notes": [note]}, "here")


@pytest.mark.parametrize("overlays", [("miniature.yaml",), ("miniature.yaml", "demo.yaml")], ids=str)
def test_captions_speak_of_no_column_or_row_that_is_not_there(overlays):
    """Of the configured tables, as the miniature shows them: no benchmark that it does not measure, no other recipe."""
    catalogue = loading.load(layers.read([CONFIG / overlay for overlay in overlays], CONFIG), CONFIG)
    for name in {name for study in catalogue.studies.values() for name in study.tables}:
        table = catalogue.tables[name]
        measured = {cell[3] for cell in (*catalogue.cells(table.study), *catalogue.analysis_cells(table.study))}
        shown = [column for column in table.columns if column.benchmark in measured]
        rows = table.rows or catalogue.studies[table.study].recipes
        caption = table.described(shown, rows, published=False)
        absent = {column.label for column in table.columns} - {column.label for column in shown}
        absent |= {table.label(recipe) for recipe in table.labels} - {table.label(recipe) for recipe in rows}
        there = " ".join([*(column.label for column in shown), *(table.label(recipe) for recipe in rows)])
        names = {name for name in absent if name[0].isupper() and name not in there}
        assert not [name for name in names if name in caption], name


@pytest.mark.parametrize("kind", ["tables", "figures"])
def test_published_attack_rates_of_aside_stand_beside_those_of_the_same_prompts(kind):
    """What the authors cut, or asked otherwise, has a variant; without one their prompts are ours but for the cut."""
    shown = {
        (column["benchmark"], column["metric"]) for column in read_yaml(CONFIG / kind / "aside_safety.yaml")["columns"]
    }
    printed = read_yaml(CONFIG / "published/aside.yaml")["results"]
    rates = {(one["benchmark"], one["metric"]) for one in printed if one["what"].startswith("attack success rate")}
    assert rates <= shown
    variants = ("struq", "tensortrust", "gandalf", "bipia_text", "bipia_code")
    assert {f"{name}_published" for name in variants} <= {benchmark for benchmark, _ in rates}
    assert not set(variants) & {benchmark for benchmark, _ in rates}
