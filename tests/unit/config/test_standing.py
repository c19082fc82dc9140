"""How results stand to a plan: every way in which one can be stale, and what still counts as done."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bulwark import seals
from bulwark.config import loading, overlays, paths, plan_reports
from bulwark.config.standing import gate
from bulwark.config.standing.asked import asked
from bulwark.config.standing.dry_run import told_again
from bulwark.config.standing.overview import left_over, overview
from bulwark.config.standing.standing import Standings, Task, made_from
from tests.conftest import ROOT, SMALLEST

DATA, MODEL, ANSWERS, SCORES = (
    "results/data/d/test.jsonl",
    "results/checkpoints/m/a/seed0/checkpoint.json",
    "results/answers/m/a/seed0/b.jsonl",
    "results/scores/m/a/seed0/b.json",
)
RULES = {DATA: "prepare_dataset", MODEL: "apply_step", ANSWERS: "generate_answers", SCORES: "score_answers"}
READ = {DATA: ("mine.csv",), MODEL: (DATA,), ANSWERS: (MODEL, DATA), SCORES: (ANSWERS, DATA)}
SETTINGS = {"rate": 0.1, "training": {"epochs": 3, "betas": [0.9, 0.95]}}


def task(path, **changed):
    given = {"settings": SETTINGS, "code": "01"} | changed
    return Task(asked(RULES[path], path.split("/")[2:], given, gpus=1), READ[path], (path,), given)


def make(path):
    wanted = task(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    inputs = {read: seals.content(read) for read in wanted.inputs}
    if seals.is_manifest(path):
        seals.write_manifest(seals.Path(path), {"files": [], "template": path, "settings": SETTINGS})
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write(path)
    seals.seal(path, wanted.asked, inputs, RULES[path])


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Records, a checkpoint, answers and scores, made from a file of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("1", encoding="utf-8")
    for path in RULES:
        make(path)
    return tmp_path


def standings(**changed):
    return Standings([changed.get(RULES[path], task(path)) for path in RULES])


def states(**changed):
    found = standings(**changed)
    return [found.of(found.tasks[path]).state for path in RULES]


def reason(path, **changed):
    found = standings(**changed)
    return found.of(found.tasks[path]).reason


def test_what_was_made_as_asked_is_done_whatever_the_times_say(results):
    for number, path in enumerate(RULES):
        os.utime(path, (1000 - number, 1000 - number))
    assert states() == ["done"] * 4
    shutil.copytree(results, results / "elsewhere")
    os.chdir(results / "elsewhere")
    assert states() == ["done"] * 4, "copied, with other times"


def test_a_changed_setting_is_told_with_what_it_was_and_is_to_be():
    changed = task(MODEL, settings={"rate": 0.2, "training": {"epochs": 3, "betas": [0.9, 0.99]}})
    assert states(apply_step=changed) == ["done", "stale", "stale", "stale"]
    told = reason(MODEL, apply_step=changed)
    assert told == (
        "settings.rate was 0.1 and is to be 0.2; settings.training.betas was [0.9, 0.95] and is to be [0.9, 0.99]"
    )
    assert reason(SCORES, apply_step=changed) == f"it is made from {MODEL}: {told}"


def test_changed_code_is_told():
    changed = task(SCORES, code="02")
    assert states(score_answers=changed) == ["done", "done", "done", "stale"]
    assert reason(SCORES, score_answers=changed) == "the code that makes it has changed"


def test_a_users_changed_file_makes_all_that_is_made_from_it_stale(results):
    (results / "mine.csv").write_text("2", encoding="utf-8")
    assert states() == ["stale"] * 4
    assert reason(DATA) == "mine.csv, which it was made from, has another content now"


def test_a_users_missing_file_is_told(results):
    (results / "mine.csv").unlink()
    assert states() == ["stale"] * 4
    assert "mine.csv" in reason(DATA)


def test_a_result_that_was_made_again_makes_what_was_made_before_stale():
    make(MODEL)
    assert states() == ["done"] * 4, "with the same content"
    seals.write_manifest(seals.Path(MODEL), {"files": [], "template": "another", "settings": SETTINGS})
    seals.seal(MODEL, task(MODEL).asked, {DATA: seals.content(DATA)}, "apply_step")
    assert states() == ["done", "done", "stale", "stale"]
    assert MODEL in reason(ANSWERS)


def test_a_result_of_another_seed_in_its_place_is_told():
    other = asked("generate_answers", ["m", "a", "seed1", "b.jsonl"], {"settings": SETTINGS, "code": "01"})
    seals.seal(ANSWERS, other, {read: seals.content(read) for read in READ[ANSWERS]}, "generate_answers")
    assert reason(ANSWERS) == "it was made as another result (generate_answers:m/a/seed1/b.jsonl)"


@pytest.mark.parametrize("damage", ["cut", "changed", "unsealed", "a broken seal"])
def test_a_damaged_result_is_not_done(damage, results):
    if damage == "cut":
        os.truncate(ANSWERS, 3)
    elif damage == "changed":
        (results / ANSWERS).write_text("x" * len(ANSWERS), encoding="utf-8")
    elif damage == "unsealed":
        seals.seal_of(ANSWERS).unlink()
    else:
        seals.seal_of(ANSWERS).write_text("{", encoding="utf-8")
    assert states()[:3] == ["done", "done", "stale"]
    assert ANSWERS in reason(ANSWERS)


def test_what_is_missing_counts_by_its_seal_for_what_was_made_from_it():
    os.unlink(ANSWERS)
    assert states() == ["done", "done", "missing", "done"]
    assert states(apply_step=task(MODEL, code="02")) == ["done", "stale", "missing", "stale"]
    seals.seal_of(ANSWERS).unlink()
    assert states() == ["done", "done", "missing", "stale"]


def test_a_further_or_a_missing_input_is_told():
    more = Task(task(SCORES).asked, (*READ[SCORES], "mine.csv"), (SCORES,))
    assert reason(SCORES, score_answers=more) == "it was made without mine.csv, which it reads now"
    less = Task(task(SCORES).asked, (ANSWERS,), (SCORES,))
    assert reason(SCORES, score_answers=less) == f"it was made from {DATA}, which it does not read any more"


def test_a_file_that_nothing_can_make_is_found():
    only = Standings([task(SCORES), task(ANSWERS), task(MODEL)])
    assert only.orphans() == [DATA]


def test_what_was_made_from_a_result_is_found_by_seals_alone():
    assert set(made_from([MODEL])) == {ANSWERS, SCORES}
    assert set(made_from([SCORES])) == set()


@pytest.mark.parametrize("linked", ["results/scores", "results/scores/m", "results/scores/m/a/seed0", "results"])
def test_results_in_folders_that_are_linked_are_found(linked, results):
    """Big ones lie on another disk. A link in a circle is no end."""
    elsewhere = results / "elsewhere" / "disk"
    elsewhere.parent.mkdir()
    os.rename(linked, elsewhere)
    os.symlink(elsewhere, linked)
    os.symlink(results / linked, elsewhere / "back")
    assert set(made_from([MODEL])) == {ANSWERS, SCORES}


def test_the_gate_tells_what_why_how_many_and_how_long():
    found = [
        gate.Remade((MODEL,), "apply_step", "settings.rate was 0.1 and is to be 0.2", 8, 16.0, defined_otherwise=True),
        gate.Remade((ANSWERS,), "generate_answers", "", 1, 0.5),
        gate.Remade(("results/reports/x/report.html",), "write_report", "the code that makes it has changed"),
    ]
    left = gate.left_stale(found)
    assert [(result.paths, result.gpus, result.planned) for result in left] == [((SCORES,), 1, False)]
    text = gate.told([*found, *left])
    for part in (
        gate.OPENING,
        "1 checkpoint, 1 set of answers (16.5 GPU hours)",
        f"{MODEL}: settings.rate was 0.1",
        "1 more: made from these",
        "1 file of scores",
        "a name of its own",
    ):
        assert part in text
    assert "report" not in text
    assert gate.told(found[2:]) == ""


def test_of_a_damaged_result_the_gate_says_the_path_once_and_gives_no_other_name():
    os.truncate(ANSWERS, 3)
    damaged = standings().of(standings().tasks[ANSWERS])
    text = gate.told([gate.Remade((ANSWERS,), "generate_answers", damaged.reason)])
    assert text.count(ANSWERS) == 1
    assert f"{ANSWERS}: has 3 bytes" in text
    assert "a name of its own" not in text


@pytest.mark.parametrize(
    ("changed", "expected"), [({"code": "02"}, False), ({"settings": {}}, True), ({"code": "02", "settings": {}}, True)]
)
def test_another_name_helps_only_against_another_definition(changed, expected):
    found = standings(apply_step=task(MODEL, **changed))
    assert found.of(found.tasks[MODEL]).defined_otherwise is expected
    assert not found.of(found.tasks[DATA]).defined_otherwise


def test_the_gate_stops_where_gpus_were_needed_and_only_there():
    costly = [gate.Remade((MODEL,), "apply_step", "settings.rate is different", 8)]
    with pytest.raises(gate.BulwarkError, match="replace=true"):
        gate.refuse(costly, replace=False)
    gate.refuse(costly, replace=True)
    gate.refuse([gate.Remade((MODEL,), "apply_step", "settings.rate is different")], replace=False)


def test_the_gate_stops_also_for_results_that_would_only_become_stale():
    found = [gate.Remade((DATA,), "prepare_dataset", "mine.csv has another content")]
    with pytest.raises(gate.BulwarkError, match="3 of them needed GPUs"):
        gate.refuse([*found, *gate.left_stale(found)], replace=False)


def test_a_plan_is_written_as_plain_data():
    plain = json.loads(json.dumps(standings(apply_step=task(MODEL, code="02")).as_plain()))
    assert [(entry["state"], entry["root"]) for entry in plain] == [
        ("done", True),
        ("stale", True),
        ("stale", False),
        ("stale", False),
    ]


def test_what_is_told_is_found_again_in_what_a_dry_run_prints():
    found = [gate.Remade((MODEL,), "apply_step", "settings.rate was 0.1 and is to be 0.2", 8, 16.0)]
    text = gate.told(found)
    assert told_again(f"Building DAG of jobs...\n{text}\nJob stats:\n  x\n") == text
    assert told_again("Building DAG of jobs...\nNothing to be done\n") == ""


def test_the_overview_counts_by_study_and_lists_reasons():
    config = ROOT / "config"
    catalogue = loading.load(overlays.read([ROOT / SMALLEST], config), config)
    cells = catalogue.cells("aside")
    tasks = [
        {
            "outputs": [paths.scores(*cell)],
            "state": "stale" if cell[1] == "aside" else "done",
            "reason": "",
            "root": False,
        }
        for cell in cells
    ]
    model = paths.checkpoint("miniature", "aside", 0)
    tasks.append({"outputs": [model], "state": "stale", "reason": "its code has changed", "root": True})
    found = overview(catalogue, tasks)
    assert set(found.studies) == {"aside"}
    assert found.studies["aside"]["scores"] == {"done": 4, "stale": 2}
    assert found.studies["aside"]["checkpoints"] == {"stale": 1, "missing": 2}
    assert found.studies["aside"]["tables"] == {"missing": 1}
    assert (found.stale, found.derived) == ({"its code has changed": [model]}, 2)


def test_what_a_configuration_does_not_ask_for_any_more_is_found_in_its_reports():
    config = ROOT / "config"
    catalogue = loading.load(overlays.read([ROOT / SMALLEST], config), config)
    folder = Path(paths.report(catalogue.name))
    asked = [*plan_reports.shown(catalogue), *paths.claims(catalogue.name), paths.page(catalogue.name)]
    left = [f"{folder}/figures/old.png", f"{folder}/tables/old.md"]
    for path in [*asked, *left]:
        for written in (Path(path), seals.seal_of(path)):
            written.parent.mkdir(parents=True, exist_ok=True)
            written.touch()
    assert overview(catalogue, []).left_over == left_over(catalogue) == left
