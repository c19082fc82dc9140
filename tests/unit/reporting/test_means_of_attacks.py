"""The mean over attacks in the place of a recipe: against a computation in plain numbers, and where it is shown."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from score_samples import draws, write_scores

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError
from bulwark.evaluation.metrics import metric
from bulwark.evaluation.statistics import Sample, StatisticsError, averaged, estimate
from bulwark.reporting import verdicts, worst_cases
from bulwark.reporting.claims import check_claim
from bulwark.reporting.columns import Column
from bulwark.reporting.figures import make_figure
from bulwark.reporting.grids import grid
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.reporting.tables import make_table
from bulwark.settings import validated

CONFIG = Path(__file__).parents[3] / "config"
COLUMN = {"benchmark": "cloze", "metric": "accuracy"}
AFTER = {"attacks": ["full", "lora.*"], "attacks_on": {"tar": ["untar"]}}
ONLY_TAR = {"attacks_on": {"tar": ["untar"]}}
TABLE = {
    "title": "T",
    "study": "s",
    "rows": ["base", "tar"],
    "published": "x",
    "columns": [
        {**COLUMN, "label": "before"},
        {**COLUMN, "label": "after", "average": AFTER},
        {**COLUMN, "label": "knowing", "average": ONLY_TAR},
    ],
}
RATES = {
    "base": 0.9, "full": 0.95, "lora.0": 0.9, "lora.1": 0.8,
    "tar": 0.1, "tar+full": 0.2, "tar+lora.0": 0.5, "tar+lora.1": 0.35, "tar+untar": 0.9,
}  # fmt: skip
RECORDS, SEEDS = 40, (0, 1, 2)


def known(recipe, seed):
    return draws(RATES[recipe], RECORDS, f"{recipe} {seed}")


def cells_of(folder, models=("m",), seeds=SEEDS):
    cells = []
    for model in models:
        for recipe in RATES:
            for seed in seeds[:1] if recipe == "base" else seeds:
                rows = [{"id": f"q{i}", "accuracy": value} for i, value in enumerate(known(recipe, seed))]
                found = {"accuracy": metric(rows, "accuracy", True)}
                cells.append(write_scores(folder, model, recipe, seed, "cloze", found, rows))
    return cells


def by_hand(recipe, names=("full", "lora.0", "lora.1", "untar"), seeds=SEEDS):
    """Mean, and its error with a record as the cluster, from a list of each record's values under all attacks."""
    attacks = [f"{recipe}+{name}" if recipe != "base" else name for name in names]
    of_record = [[known(attack, seed)[i] for attack in attacks for seed in seeds] for i in range(RECORDS)]
    means = [statistics.fmean(values) for values in of_record]
    return statistics.fmean(means), statistics.stdev(means) / math.sqrt(RECORDS)


def table(folder, cells, spec=TABLE, printed="results: []\n"):
    (folder / "x.yaml").write_text(printed, encoding="utf-8")
    frame = make_table(spec, cells, folder / "x.yaml", *(folder / f"t.{ending}" for ending in ("csv", "md", "tex")))
    return frame.set_index("recipe"), (folder / "t.md").read_text(encoding="utf-8")


def test_it_is_the_mean_over_attacks_and_seeds_with_errors_over_records(tmp_path):
    frame, markdown = table(tmp_path, cells_of(tmp_path))
    for recipe, names in (("tar", ("full", "lora.0", "lora.1", "untar")), ("base", ("full", "lora.0", "lora.1"))):
        value, error = by_hand(recipe, names)
        row = frame.loc[recipe]
        assert row["cloze.accuracy (after)_percent.value"] == pytest.approx(100 * value)
        assert row["cloze.accuracy (after)_percent.stderr"] == pytest.approx(100 * error)
        assert row["cloze.accuracy (after)_percent.attacks"] == len(names)
        assert row["cloze.accuracy (after)_percent.n"] == RECORDS
    seeds = [by_hand("tar", seeds=(seed,))[0] for seed in SEEDS]
    assert frame.loc["tar", "cloze.accuracy (after)_percent.seed_sd"] == pytest.approx(100 * statistics.stdev(seeds))
    assert frame.loc["tar", "cloze.accuracy_percent.value"] == pytest.approx(10)
    assert worst_cases.MEAN in markdown
    assert worst_cases.READING not in markdown
    assert "after: mean of full, lora.*, untar; knowing: mean of untar." in markdown


def test_what_was_to_be_forgotten_is_better_low(tmp_path):
    columns = [TABLE["columns"][0], {**TABLE["columns"][1], "better": "lower"}]
    columns.append({**COLUMN, "label": "again", "average": AFTER, "better": "higher"})
    _, markdown = table(tmp_path, cells_of(tmp_path), {**TABLE, "columns": columns})
    assert all(heading in markdown for heading in ("| before (%) ↑ |", "| after (%) ↓ |", "| again (%) ↑ |"))
    assert "after, again: mean of full, lora.*, untar." in markdown


def test_where_no_attack_is_listed_there_is_no_mean(tmp_path):
    frame, _ = table(tmp_path, cells_of(tmp_path))
    assert math.isnan(frame.loc["base", "cloze.accuracy (knowing)_percent.value"])
    assert frame.loc["tar", "cloze.accuracy (knowing)_percent.value"] == pytest.approx(90)


def test_published_numbers_of_attacks_are_not_those_before_them(tmp_path):
    entry = "  - {{benchmark: cloze, metric: {}, unit: percent, values: {{m: {{tar: {}}}}}}}\n"
    printed = "results:\n" + entry.format("accuracy", 28.1) + entry.format("accuracy (after)", 35.2)
    frame, _ = table(tmp_path, cells_of(tmp_path), printed=printed)
    assert frame.loc["tar", "cloze.accuracy_percent.published"] == pytest.approx(28.1)
    assert frame.loc["tar", "cloze.accuracy (after)_percent.published"] == pytest.approx(35.2)
    assert "cloze.accuracy (knowing)_percent.published" not in frame


def test_a_record_counts_under_the_attacks_where_it_has_a_value():
    nan = math.nan
    one = Sample((0,), ("a", "b", "c"), np.array([[1.0, nan, nan]]))
    other = Sample((0,), ("a", "b", "c"), np.array([[0.0, 1.0, nan]]))
    mean = averaged({"one": one, "other": other})
    assert mean.values[0][:2].tolist() == [0.5, 1.0]
    assert math.isnan(mean.values[0][2])
    assert estimate(mean).value == pytest.approx(0.75)
    with pytest.raises(StatisticsError, match=r"one and other were scored on different records .*: c\)"):
        averaged({"one": one, "other": Sample((0,), ("a", "b"), other.values[:, :2])})
    with pytest.raises(StatisticsError, match=r"other was measured at the seeds \[1\], one at \[0\]"):
        averaged({"one": one, "other": Sample((1,), other.ids, other.values)})


def claim(*conditions):
    return {"study": "s", "statement": "TAR holds", "source": "x", "conditions": list(conditions)}


def test_a_claim_about_the_mean_of_attacks(tmp_path):
    cells = cells_of(tmp_path)
    bound = {**COLUMN, "recipe": "tar", "value": 0.7, "average": AFTER}
    found = check_claim("c", claim({"at_most": bound}), cells)
    value, error = by_hand("tar")
    assert found["effect"] == pytest.approx(value)
    assert found["verdict"] == "reproduced"
    width = found["interval"][1] - found["interval"][0]
    assert width == pytest.approx(2 * 2.0227 * error, rel=1e-3), "Student's, 39 degrees of freedom"
    wide = check_claim("c", {**claim({"at_most": bound}), "confidence": 0.9}, cells)["interval"]
    assert wide[1] - wide[0] == pytest.approx(2 * 1.6849 * error, rel=1e-3)
    assert found["models"]["m"]["conditions"][0]["average"]["tar"]["attacks"] == [
        "tar+full", "tar+lora.0", "tar+lora.1", "tar+untar",
    ]  # fmt: skip
    assert "mean of full, lora.*, untar" in found["conditions"][0]["text"]
    shared = {"attacks": ["full", "lora.*"]}
    against = {"better": {**COLUMN, "recipe": "base", "than": "tar", "average": shared}}
    found = check_claim("c", claim(against), cells)
    names = ("full", "lora.0", "lora.1")
    assert found["effect"] == pytest.approx(by_hand("base", names)[0] - by_hand("tar", names)[0])
    assert found["verdict"] == "reproduced"
    said = verdicts.headline(found, {"cloze.accuracy": {**COLUMN, "label": "Forgotten facts"}})
    assert said.quantity == "accuracy of cloze (mean of full, lora.*)"
    none = {**COLUMN, "recipe": "base", "value": 0.5, "average": ONLY_TAR}
    found = check_claim("c", claim({"at_most": none}), cells)
    assert found["verdict"] == "undecided"
    assert found["models"]["m"]["conditions"][0]["reason"] == (
        "there is no mean of attacks (base: no attack is listed)"
    )


def test_several_models_are_joined_record_by_record(tmp_path):
    cells = cells_of(tmp_path, models=("m", "other"))
    found = check_claim("c", claim({"at_most": {**COLUMN, "recipe": "tar", "value": 0.7, "average": AFTER}}), cells)
    value, error = by_hand("tar")
    assert found["effect"] == pytest.approx(value)
    assert found["interval"][1] - value == pytest.approx(2.0227 * error, rel=1e-3), "the same records: one cluster"


def test_the_report_and_bars_show_it(tmp_path):
    cells = cells_of(tmp_path)
    made = grid("t", validated(Table, TABLE, "").model_dump(mode="json"), cells, None, lambda *of: "/".join(of))
    fields = {label: row for label, row, _ in made.models[0][1]}["tar"]
    assert [bool(field.origin) for field in fields] == [True, False, False]
    assert float(fields[1].value) == pytest.approx(100 * by_hand("tar")[0], abs=0.0501)
    make_figure({**TABLE, "kind": "bars", "published": None}, cells, None, tmp_path / "f.pdf", tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


def test_bars_mark_the_published_number_of_the_same_attacks(tmp_path, monkeypatch):
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    values = "unit: percent, values: {m: {tar: 35.2}}"
    (tmp_path / "x.yaml").write_text(f'results: [{{benchmark: cloze, metric: "accuracy (after)", {values}}}]\n')
    make_figure(
        {**TABLE, "kind": "bars"}, cells_of(tmp_path), tmp_path / "x.yaml", tmp_path / "f.pdf", tmp_path / "f.png"
    )
    diamonds = [[line.get_ydata()[0] for line in panel.lines if line.get_marker() == "D"] for panel in saved[-1].axes]
    assert diamonds == [[], [pytest.approx(35.2)], []]


def test_what_is_needed_is_named():
    assert validated(Table, TABLE, "").recipes() == (
        "base", "tar", "full", "lora.*", "tar+full", "tar+lora.*", "tar+untar",
    )  # fmt: skip
    assert set(validated(Table, TABLE, "").required_benchmarks()) == {"cloze"}
    said = validated(Claim, claim({"at_most": {**COLUMN, "recipe": "tar", "value": 0.7, "average": AFTER}}), "")
    assert said.recipes() == ("tar", "tar+full", "tar+lora.*", "tar+untar")
    plain = validated(Table, TABLE, "").columns[1].plain()
    assert (plain.average, plain.label) == (None, "accuracy")


WORST = {"harm": "highest", "attacks": ["full"], "utility": {"benchmark": "retain", "metric": "accuracy"}}


@pytest.mark.parametrize(
    ("cls", "spec", "said"),
    [
        (Column, {**COLUMN, "label": "x", "average": {}}, "over attacks, or over attacks_on"),
        (Column, {**COLUMN, "label": "x", "average": AFTER, "worst_case": WORST}, "exclude each other"),
        (Table, {**TABLE, "rows": []}, "rows lists the recipes that are attacked"),
    ],
)
def test_wrong_settings_say_what_to_change(cls, spec, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(cls, spec, "here")


# --- the attacks of the study ---

ALL = {**TABLE, "columns": [{**COLUMN, "label": "after", "average": {"attacks": "study"}}]}


def test_the_word_study_stands_for_the_attacks_of_the_study():
    spec = validated(Table, ALL, "")
    with pytest.raises(ConfigurationError, match='"study" stands for the attacks of a study'):
        spec.recipes()
    filled = spec.of_study(("full", "lora.*"))
    assert filled.recipes() == ("base", "tar", "full", "lora.*", "tar+full", "tar+lora.*")
    assert (spec.lacks_attacks, filled.lacks_attacks) == (True, False)
    assert spec.of_study(()) is spec
    listed = validated(Table, TABLE, "")
    assert listed.of_study(("other",)) is listed
    drawn = {
        "title": "F", "study": "study", "kind": "attacks",
        "attacks": {
            "harm": {**COLUMN, "label": "study"},
            "most": "highest",
            "against": [{**COLUMN, "label": "x"}],
            "series": {"base": "study", "tar": ["full"]},
        },
    }  # fmt: skip
    figure = validated(Figure, drawn, "").of_study(("lora.*",))
    assert figure.attacks.series == {"base": ("lora.*",), "tar": ("full",)}
    assert (figure.study, figure.attacks.harm.label) == ("study", "study")


def test_a_configuration_fills_it_in_and_says_where_it_cannot():
    def loaded(attacks):
        text = f"""
name: mine
run: [grid]
studies:
  grid: {{models: [miniature], recipes: [base, ise], attacks: {attacks}, seeds: [0], benchmarks: [sep], tables: [t]}}
tables:
  t:
    title: T
    study: grid
    rows: [base, ise]
    columns: [{{benchmark: sep, metric: utility, label: After, average: {{attacks: study}}}}]
"""
        files = overlays.read([CONFIG / "miniature.yaml"], CONFIG).files
        return loading.load(overlays.Configuration((*files, overlays.text(text))), CONFIG)

    assert loaded("[vanilla, aside]").tables["t"].recipes() == (
        "base", "ise", "vanilla", "aside", "ise+vanilla", "ise+aside",
    )  # fmt: skip
    with pytest.raises(
        ConfigurationError, match=r"overlay.yaml:7, tables.t: .*attacks of studies.grid, which has none"
    ):
        loaded("[]")
    assert loading.load({"studies": {}}, CONFIG).tables["tar"].lacks_attacks, "no study, and nobody asks"


def test_results_say_the_same_of_a_column(tmp_path):
    results = Results(cells_of(tmp_path))
    column = validated(Table, TABLE, "").columns[1]
    assert worst_cases.estimate_of(results, "m", "tar", column).value == pytest.approx(by_hand("tar")[0])
