"""The worst case in tables, figures, claims and the report: side by side, with what was chosen, and never silent."""

import math
from pathlib import Path

import pytest
from score_samples import draws, write_scores

from bulwark.config import loading, overlays, plan_reports
from bulwark.errors import ConfigurationError
from bulwark.evaluation.metrics import metric
from bulwark.evaluation.worst_case import Attack, halves, worst_case
from bulwark.reporting import verdicts, worst_cases
from bulwark.reporting.claims import check_claim
from bulwark.reporting.columns import WorstCase, stands_for, those_named
from bulwark.reporting.figures import attacks as drawn
from bulwark.reporting.figures import make_figure
from bulwark.reporting.grids import grid
from bulwark.reporting.results import Results, ResultsError
from bulwark.reporting.settings import Claim, Figure, Table
from bulwark.reporting.tables import make_table
from bulwark.settings import validated

UTILITY = {"benchmark": "retain", "metric": "accuracy"}
TUNED = {"harm": "highest", "attacks": ["relearn.*"], "utility": UTILITY, "loss": 0.1}
FIXED = {"harm": "highest", "attacks": ["relearn"], "utility": UTILITY, "loss": 0.1}
KNOWING = {"harm": "highest", "attacks_on": {"tar": ["untar"]}, "utility": UTILITY, "loss": 0.1}
COLUMN = {"benchmark": "cloze", "metric": "accuracy"}
TABLE = {
    "title": "T",
    "study": "s",
    "rows": ["base", "tar"],
    "columns": [
        {**COLUMN, "label": "before"},
        {**COLUMN, "label": "fixed", "worst_case": FIXED},
        {**COLUMN, "label": "tuned", "worst_case": TUNED},
        {**COLUMN, "label": "knowing", "worst_case": KNOWING},
    ],
}
# {recipe: (harm, utility, tokens of the attack)}
STUDY = {
    "base": (0.9, 1.0, None),
    "tar": (0.1, 1.0, None),
    "relearn": (0.95, 1.0, 100),
    "relearn.0": (0.97, 1.0, 50),
    "relearn.1": (0.92, 1.0, 200),
    "tar+relearn": (0.2, 1.0, 100),
    "tar+relearn.0": (0.7, 0.98, 50),
    "tar+relearn.1": (0.95, 0.5, 200),
    "tar+untar": (0.85, 0.97, 400),
}


def scores(folder, recipe, seed, benchmark, rate, n, model="m"):
    values = draws(rate, n, f"{recipe} {seed} {benchmark}")
    rows = [{"id": f"{benchmark}-{i}", "accuracy": value} for i, value in enumerate(values)]
    return write_scores(folder, model, recipe, seed, benchmark, {"accuracy": metric(rows, "accuracy", True)}, rows)


def cells_of(folder, study=None, seeds=(0, 1), n=60, model="m"):
    cells = []
    for recipe, (harm, utility, tokens) in (study or STUDY).items():
        for seed in seeds[:1] if recipe == "base" else seeds:
            cells.append(scores(folder, recipe, seed, "cloze", harm, n, model))
            cells.append(scores(folder, recipe, seed, "retain", utility, 50, model))
            if tokens is not None:
                spent = {"value": tokens + seed, "stderr": None, "interval": None, "n": 1, "higher_is_better": None}
                cells.append(write_scores(folder, model, recipe, seed, "compute", {"tokens": spent}))
    return cells


def table(folder, cells, spec=None):
    frame = make_table(spec or TABLE, cells, None, *(folder / f"t.{ending}" for ending in ("csv", "md", "tex")))
    return frame.set_index("recipe"), (folder / "t.md").read_text(encoding="utf-8")


def test_a_trial_that_diverged_is_left_out_and_told(tmp_path):
    """At one seed of two it is gone as a whole, since attacks are compared at the same seeds."""
    cells = cells_of(tmp_path)
    expected, _ = table(tmp_path, [cell for cell in cells if cell["recipe"] != "tar+relearn.0"])
    for benchmark in ("cloze", "retain"):
        none = {"accuracy": {"value": None, "stderr": None, "interval": None, "n": 0, "higher_is_better": True}}
        gone = {"reported": {"diverged": "Training stopped at step 3."}}
        write_scores(tmp_path, "m", "tar+relearn.0", 1, benchmark, none, [], **gone)
    frame, markdown = table(tmp_path, cells)
    column = next(name for name in frame.columns if "tuned" in name and name.endswith("value"))
    assert frame.loc["tar"][column] == expected.loc["tar"][column]
    assert "1 of 2 attacks diverged" in markdown
    for recipe in ("tar+relearn.0", "tar+relearn.1"):
        for benchmark in ("cloze", "retain"):
            write_scores(tmp_path, "m", recipe, 0, benchmark, none, [], **gone)
    frame, markdown = table(tmp_path, cells)
    assert math.isnan(frame.loc["tar"][column])
    assert "2 of 2 attacks diverged" in markdown


def test_a_table_has_the_worst_cases_side_by_side(tmp_path):
    cells = cells_of(tmp_path)
    frame, markdown = table(tmp_path, cells)
    tar = frame.loc["tar"]
    assert tar["cloze.accuracy_percent.value"] == pytest.approx(10)
    assert tar["cloze.accuracy (fixed)_percent.value"] == pytest.approx(20)
    assert tar["cloze.accuracy (tuned)_percent.value"] == pytest.approx(70, abs=1), (
        "not 95: half of the utility is lost"
    )
    assert tar["cloze.accuracy (tuned)_percent.attack"] == "relearn.0"
    assert tar["cloze.accuracy (tuned)_percent.utility_kept"] == pytest.approx(0.98)
    assert tar["cloze.accuracy (knowing)_percent.attack"] == "untar"
    low, high = (tar[f"cloze.accuracy (tuned)_percent.{part}"] for part in ("low", "high"))
    assert low < tar["cloze.accuracy (tuned)_percent.value"] < high
    base = frame.loc["base"]
    assert base["cloze.accuracy (fixed)_percent.value"] == pytest.approx(95)
    assert base["cloze.accuracy (knowing)_percent.attack"] == "no attack is listed"
    row = next(line for line in markdown.splitlines() if "| base |" in line)
    assert row.endswith("| – | 0 | – | no attack is listed |")
    assert "| attack |" in markdown.splitlines()[2]
    assert worst_cases.READING in markdown
    assert "tuned: worst case of relearn.* within 10 % of accuracy of retain" in markdown


def test_it_is_the_number_of_the_evaluation(tmp_path):
    results = Results(cells_of(tmp_path))
    names = ("tar+relearn.0", "tar+relearn.1")
    of = {name: Attack(*(results.sample("m", name, b, "accuracy") for b in ("cloze", "retain"))) for name in names}
    of["tar"] = Attack(*(results.sample("m", "tar", b, "accuracy") for b in ("cloze", "retain")))
    expected = worst_case(of, results.sample("m", "tar", "retain", "accuracy"), 0.1)
    found = worst_cases.of(results, "m", "tar", validated(Table, TABLE, "").columns[2], validated(WorstCase, TUNED, ""))
    assert found.estimate == expected.estimate
    assert found.attacks == names


def test_without_an_attack_that_keeps_the_utility_the_model_stays_as_it_is(tmp_path):
    cells = cells_of(tmp_path, {**STUDY, "tar+relearn.0": (0.7, 0.6, 50)})
    frame, _ = table(tmp_path, cells)
    tuned = "cloze.accuracy (tuned)_percent"
    assert frame.loc["tar", f"{tuned}.attack"] == "no attack"
    assert frame.loc["tar", f"{tuned}.value"] == frame.loc["tar", "cloze.accuracy_percent.value"] == pytest.approx(10)
    assert frame.loc["tar", f"{tuned}.utility_kept"] == 1
    bound = {"at_most": {**COLUMN, "recipe": "tar", "value": 0.3, "worst_case": TUNED}}
    assert check_claim("c", claim(bound), cells)["verdict"] == "reproduced"


def test_an_attack_that_does_less_harm_than_none_is_not_chosen(tmp_path):
    """Of the base model, which has one seed where its attacks have several, too."""
    weaker = {f"relearn.{number}": (0.5, 0.97, 100) for number in (0, 1)}
    results = Results(cells_of(tmp_path, STUDY | weaker))
    shown = validated(Table, TABLE, "").columns[2]
    found = worst_cases.of(results, "m", "base", shown, validated(WorstCase, TUNED, ""))
    assert found.chosen == "no attack"
    assert found.estimate.value == results.estimate("m", "base", "cloze", "accuracy").value


def test_where_a_half_of_the_records_counts_nothing_it_says_so(tmp_path):
    """A conditional metric, such as SEP's score, of few records."""
    cells = cells_of(tmp_path, {name: STUDY[name] for name in STUDY if name.startswith("tar")}, seeds=(0,))
    ids = [f"cloze-{number}" for number in range(8)]
    for recipe in ("tar", "tar+relearn.0", "tar+relearn.1"):
        rows = [{"id": one, "accuracy": 1 if first else None} for one, first in zip(ids, halves(ids), strict=True)]
        write_scores(tmp_path, "m", recipe, 0, "cloze", {"accuracy": metric(rows, "accuracy", True)}, rows)
    shown = validated(Table, TABLE, "").columns[2]
    found = worst_cases.of(Results(cells), "m", "tar", shown, validated(WorstCase, TUNED, ""))
    assert found.estimate.value is None
    assert found.chosen == "on one half of the records there is no harm, or no utility, to choose by"


def test_without_utility_before_there_is_no_worst_case(tmp_path):
    cells = cells_of(tmp_path, {**STUDY, "tar": (0.1, 0.0, None)})
    frame, _ = table(tmp_path, cells)
    nothing = "there is no utility before it that could be lost"
    assert frame.loc["tar", "cloze.accuracy (tuned)_percent.attack"] == nothing
    against = {"better": {**COLUMN, "recipe": "base", "than": "tar", "worst_case": TUNED}}
    said = check_claim("c", claim(against), cells)
    assert said["verdict"] == "undecided"
    assert nothing in said["models"]["m"]["conditions"][0]["reason"]


def claim(*conditions):
    return {"study": "s", "statement": "TAR holds", "source": "x", "conditions": list(conditions)}


def test_a_claim_about_a_worst_case_holds_or_falls_by_it(tmp_path):
    cells = cells_of(tmp_path, n=200)
    tar = {**COLUMN, "recipe": "tar", "value": 0.4}
    before, fixed, tuned = ({"at_most": tar | more} for more in ({}, {"worst_case": FIXED}, {"worst_case": TUNED}))
    assert check_claim("c", claim(before), cells)["verdict"] == "reproduced"
    assert check_claim("c", claim(fixed), cells)["verdict"] == "reproduced"
    found = check_claim("c", claim(tuned), cells)
    assert found["verdict"] == "not reproduced"
    assert found["effect"] == pytest.approx(0.7, abs=0.01)
    entry = found["models"]["m"]["conditions"][0]
    assert entry["worst_case"] == {
        "tar": {
            "chosen": "relearn.0",
            "utility_kept": pytest.approx(0.98),
            "attacks": ["tar+relearn.0", "tar+relearn.1"],
        }
    }
    compared = {**COLUMN, "recipe": "base", "than": "tar", "worst_case": TUNED}
    found = check_claim("c", claim({"better": compared}), cells)
    assert found["verdict"] == "reproduced"
    assert found["effect"] == pytest.approx(0.27, abs=0.02)
    columns = {"cloze.accuracy": {**COLUMN, "label": "Forgotten facts"}}
    said = verdicts.headline(found, columns)
    assert said.quantity == "accuracy of cloze (worst case of relearn.* within 10 % of accuracy of retain)"
    assert said.effect.endswith("points")


def test_harm_may_be_the_lowest_value(tmp_path):
    """As of refusals: the attack after which the metric is lowest, and of this model that it is left as it is."""
    results = Results(cells_of(tmp_path, n=2000))
    shown = validated(Table, TABLE, "").columns[2]
    found = {
        harm: worst_cases.of(
            results, "m", "base", shown, validated(WorstCase, {**TUNED, "harm": harm}, "")
        ).estimate.value
        for harm in ("highest", "lowest")
    }
    assert found == {"highest": pytest.approx(0.97, abs=0.01), "lowest": pytest.approx(0.9, abs=0.01)}


def test_several_models_are_joined(tmp_path):
    fallen = {**STUDY, "tar+relearn.0": (0.3, 0.98, 50)}
    cells = cells_of(tmp_path) + cells_of(tmp_path, fallen, model="other")
    terms = {**COLUMN, "recipe": "tar", "value": 0.4, "worst_case": TUNED}
    found = check_claim("c", claim({"at_most": terms}), cells)
    assert found["effect"] == pytest.approx(0.5, abs=0.01)
    assert found["interval"][0] < found["effect"] < found["interval"][1]
    none = {**STUDY, "tar": (0.1, 0.0, None)}
    cells = cells_of(tmp_path / "b") + cells_of(tmp_path / "b", none, model="other")
    against = {"better": {**COLUMN, "recipe": "base", "than": "tar", "worst_case": TUNED}}
    for condition in ({"at_most": terms}, against):
        found = check_claim("c", claim(condition), cells)
        assert (found["effect"], found["interval"], found["p_value"]) == (None, None, None)
        assert found["models"]["other"]["verdict"] == "undecided"


def test_the_report_says_which_attacks_they_are_and_opens_no_sheet(tmp_path):
    cells = cells_of(tmp_path)
    made = grid("t", validated(Table, TABLE, "").model_dump(mode="json"), cells, None, lambda *of: "/".join(of))
    rows = {label: row for label, row, _ in made.models[0][1]}
    assert [field.attack for field in rows["tar"]] == ["", "relearn", "relearn.0", "untar"]
    assert [bool(field.origin) for field in rows["tar"]] == [True, False, False, False]


def test_bars_show_worst_cases_too(tmp_path):
    spec = {**TABLE, "kind": "bars"}
    make_figure(spec, cells_of(tmp_path), None, tmp_path / "f.pdf", tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


def attacks(**changes):
    return {
        "title": "F",
        "study": "s",
        "kind": "attacks",
        "attacks": {
            "harm": {**COLUMN, "label": "facts"},
            "most": "highest",
            "against": [
                {"analysis": "compute", "metric": "tokens", "label": "tokens", "percent": False, "log": True},
                {**UTILITY, "label": "utility"},
            ],
            "series": {"base": ["relearn.*"], "tar": ["relearn.*", "untar"]},
            **changes,
        },
    }


def test_a_figure_draws_every_attack_and_the_front(tmp_path, monkeypatch):
    from matplotlib.figure import Figure as Canvas

    saved = []
    original = Canvas.savefig
    monkeypatch.setattr(Canvas, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    make_figure(attacks(), cells_of(tmp_path), None, tmp_path / "f.pdf", tmp_path / "f.png")
    cost, utility = saved[-1].axes
    of_base, of_tar = (sorted(map(tuple, marks.get_offsets().tolist())) for marks in cost.collections)
    assert of_base == [(50.5, pytest.approx(97, abs=1)), (200.5, pytest.approx(92, abs=1))]
    assert [tokens for tokens, _ in of_tar] == [50.5, 200.5, 400.5]
    assert cost.get_xscale() == "log"
    fronts = [list(zip(*line.get_data(), strict=True)) for line in cost.lines if line.get_drawstyle() == "steps-post"]
    assert [tokens for tokens, _ in fronts[0]] == [50.5, 400.5], "more tokens for less harm are not on it"
    assert [tokens for tokens, _ in fronts[1]] == [50.5, 200.5, 400.5]
    assert [tokens for tokens, _ in sorted(map(tuple, utility.collections[1].get_offsets().tolist()))] == [50, 96, 98]


def test_the_front_is_what_no_other_beats():
    points = [(1, 10), (2, 5), (3, 20), (3, 15), (4, 20), (5, 30)]
    assert drawn.front(points, "highest", cheap=True) == [(1, 10), (3, 20), (5, 30)]
    assert drawn.front(points, "highest", cheap=False) == [(5, 30)]
    assert drawn.front(points, "lowest", cheap=True) == [(1, 10), (2, 5)]
    assert drawn.front(points, "lowest", cheap=False) == [(5, 30), (4, 20), (3, 15), (2, 5)]


def test_what_is_needed_is_named():
    shown = validated(Table, TABLE, "")
    assert shown.recipes() == ("base", "tar", "relearn", "tar+relearn", "relearn.*", "tar+relearn.*", "tar+untar")
    assert shown.trained() == ("base", "tar")
    assert ("retain", "accuracy") in shown.metrics()
    figure = validated(Figure, attacks(), "")
    assert figure.recipes() == ("base", "relearn.*", "tar", "tar+relearn.*", "tar+untar")
    assert figure.trained() == ("relearn.*", "tar+relearn.*", "tar+untar"), "the recipes before have no compute"
    assert set(figure.benchmarks()) == {"cloze", "retain", "compute"}
    spec = claim({"at_most": {**COLUMN, "recipe": "tar", "value": 0.5, "worst_case": TUNED}})
    said = validated(Claim, spec, "")
    assert said.recipes() == ("tar", "tar+relearn.*")
    assert set(said.required_benchmarks()) == {"cloze", "retain"}


def test_names_stand_for_trials_alone():
    assert stands_for("tar+relearn.*", "tar+relearn.12")
    assert not stands_for("tar+relearn.*", "tar+relearn")
    assert not stands_for("tar+relearn.*", "tar+relearn.1+sft")
    assert not stands_for("relearn.*", "tar+relearn.1")
    assert not stands_for("relearn", "relearnx")
    assert those_named(["b.*", "a", "gone"], ["a", "b.0", "b.1", "c"]) == ["b.0", "b.1", "a", "gone"]


def test_what_is_missing_is_an_error(tmp_path):
    cells = [cell for cell in cells_of(tmp_path) if cell["recipe"] != "tar+untar"]
    with pytest.raises(ResultsError, match=r'no result of "cloze" for m, tar\+untar'):
        table(tmp_path, cells)
    without = [{**cell} for cell in cells_of(tmp_path / "b")]
    for path in Path(tmp_path / "b").rglob("retain.records.jsonl"):
        path.unlink()
    with pytest.raises(ResultsError, match="retain keeps no value of accuracy per record"):
        table(tmp_path, without)


@pytest.mark.parametrize(
    ("cls", "spec", "said"),
    [
        (WorstCase, {"harm": "highest", "utility": UTILITY}, "over attacks, or over attacks_on"),
        (WorstCase, {k: v for k, v in TUNED.items() if k != "harm"}, 'the key "harm" is missing'),
        (WorstCase, {**TUNED, "loss": 1.0}, "less than 1"),
        (Table, {**TABLE, "rows": []}, "rows lists the recipes that are attacked"),
        (Figure, attacks(harm={**COLUMN, "label": "x", "worst_case": TUNED}), "attacks are drawn one by one"),
    ],
)
def test_wrong_settings_say_what_to_change(cls, spec, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(cls, spec, "here")


def test_a_claims_column_is_not_labelled_as_a_worst_case():
    config = Path(__file__).parents[3] / "config"
    files = [
        config / "miniature.yaml",
        config.parent / "tests/config/smallest.yaml",
        config.parent / "tests/config/trials.yaml",
    ]
    known = loading.load(overlays.read(files, config), config)
    column = plan_reports.columns(known)["trials"]["sep.utility"]
    assert (column["label"], column["worst_case"]) != ("Worst case", None)
    assert column["worst_case"] is None
    assert {cell["recipe"] for cell in plan_reports.claims(known).cells["trials"]} == {
        "vanilla", *(f"vanilla+relearn_tried.{n}" for n in range(4)),
    }  # fmt: skip
