"""What a plan makes again, over results that no job has made but that are sealed as if: and what it says of it."""

import base64
import json
import os
import re
import shutil
from collections import Counter

import pytest

from bulwark import seals
from tests.conftest import ROOT, SMALLEST, Checkout, copy_of_the_tree, jobs
from tests.helpers.sealed_results import fabricate, planned

ALL = ("--configfile", SMALLEST, "--", "all")
OTHER_TRIGGERS = ([], ["--rerun-triggers", "mtime"], ["--workflow-profile", "none"])  # the last: without our profile
CHECKPOINT = "results/checkpoints/miniature/aside/seed0/checkpoint.json"


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Checkout:
    """A copy with all results of the smallest configuration, of which tests take copies."""
    copy = copy_of_the_tree(tmp_path_factory.mktemp("sealed") / "bulwark")
    plan, _ = planned(copy, *ALL)
    fabricate(
        copy, plan, lambda path: {"training": {"learning_rate": 0.5}} if path.endswith("checkpoint.json") else None
    )
    return copy


@pytest.fixture
def sealed(template, tmp_path) -> Checkout:
    """Its results have other times than they were made in, and there is no .snakemake."""
    target = tmp_path / "moved" / "bulwark"
    shutil.copytree(template.folder, target, symlinks=True, copy_function=shutil.copy)
    shutil.rmtree(target / ".snakemake")
    files = sorted(path for path in (target / "results").rglob("*") if path.is_file())
    for number, path in enumerate(files):
        os.utime(path, (2_000_000_000 - 60 * number,) * 2)
    return Checkout(target)


def overlay(checkout: Checkout, text: str) -> tuple[str, ...]:
    (checkout.folder / "mine.yaml").write_text("name: mine\n" + text, encoding="utf-8")
    return ("--configfile", SMALLEST, "mine.yaml", "--", "all")


def states(plan) -> Counter:
    return Counter((task["asked"].split(" ")[1].split(":")[0], task["state"]) for task in plan)


@pytest.mark.parametrize("options", OTHER_TRIGGERS, ids=" ".join)
def test_sealed_results_are_done_wherever_and_whenever_they_lie(sealed, options):
    plan, printed = planned(sealed, *options, *ALL)
    assert {state for _, state in states(plan)} == {"done"}
    assert "Nothing to be done" in printed
    assert str(ROOT) not in json.dumps(plan)
    assert str(sealed.folder) not in json.dumps(plan), "a path that a moved checkout does not have"


@pytest.mark.parametrize("options", OTHER_TRIGGERS, ids=" ".join)
def test_results_of_other_settings_are_stale_even_if_snakemake_remembers_nothing(sealed, options):
    changed = overlay(sealed, "steps: {aside: {models: {miniature: {settings: {training: {learning_rate: 0.25}}}}}}\n")
    plan, printed = planned(sealed, *options, *changed)
    assert states(plan)["apply_step", "stale"] == 1
    assert states(plan)["generate_answers", "stale"] == 2
    assert re.search(r"apply_step +1\n", printed), printed
    for part in (
        "1 checkpoint, 2 sets of answers, 2 files of scores",
        CHECKPOINT,
        "learning_rate was 0.5 and is to be",
    ):
        assert part in printed, printed


def test_a_model_of_another_definition_under_the_same_name_is_told_before_any_job(sealed):
    changed = overlay(
        sealed,
        "models: {miniature: {source: {miniature: {model: {hidden_size: 64}}}}}\n",
    )
    _, printed = planned(sealed, *changed)
    print(printed[-4000:])
    assert "1 base model, 2 checkpoints, 6 sets of answers" in printed
    assert "model.source.miniature" in printed
    assert "a name of its own" in printed


def test_records_of_another_definition_are_told(sealed):
    plan, printed = planned(sealed, *overlay(sealed, "datasets: {miniature_sep: {splits: {test: 23}}}\n"))
    assert "dataset.splits is different" in printed
    assert states(plan)["apply_step", "done"] == 2
    assert states(plan)["generate_answers", "stale"] == 3


def test_what_was_changed_by_hand_is_made_again(sealed):
    scores = sealed.folder / "results/scores/miniature/aside/seed0/sep.json"
    scores.write_text(scores.read_text(encoding="utf-8").replace("sep", "pes"), encoding="utf-8")
    table = sealed.folder / "results/reports/smallest/tables/aside_sep.md"
    table.write_text("", encoding="utf-8")
    plan = sealed.plan(*ALL)
    assert plan["score_answers"] == 1
    assert plan["make_table"] == 1
    assert "generate_answers" not in plan


def test_without_a_seal_nothing_is_taken_for_what_is_asked_for(sealed):
    (sealed.folder / "results/data/miniature_tasks/test.jsonl.seal.json").unlink()
    plan, printed = planned(sealed, *ALL)
    assert "results/data/miniature_tasks/test.jsonl: has no seal" in printed
    assert states(plan)["generate_answers", "stale"] == 3


def test_a_run_stops_where_finished_results_needed_gpus(sealed, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked_of_gpus(sealed, CHECKPOINT)
    changed = overlay(sealed, "steps: {aside: {models: {miniature: {settings: {training: {learning_rate: 0.25}}}}}}\n")
    stopped = sealed.snakemake("--cores", "1", *changed, check=False)
    assert stopped.returncode != 0
    for part in (CHECKPOINT, "1 of them needed GPUs, so nothing was started", "--config replace=true"):
        assert part in stopped.stdout
    assert (sealed.folder / CHECKPOINT).exists()
    assert jobs(sealed.snakemake("--dry-run", "--quiet", "rules", *changed).stdout)["apply_step"] == 1
    wrong = sealed.snakemake("--cores", "1", "--config", "replace=perhaps", *changed, check=False)
    assert "write replace=true" in wrong.stdout


def test_what_snakemake_did_not_see_finish_is_done_if_it_is_sealed_and_no_finished_result_if_not(sealed):
    scores = sealed.folder / "results/scores/miniature/aside/seed0/sep.json"
    unseen_by_snakemake(sealed, CHECKPOINT, str(scores.relative_to(sealed.folder)))
    plan, printed = planned(sealed, *ALL)
    assert "Nothing to be done" in printed
    seals.seal_of(scores).unlink()
    plan, printed = planned(sealed, *ALL)
    assert states(plan)["score_answers", "stale"] == 1
    assert "made again" not in printed


def test_what_snakemake_did_not_see_finish_is_counted_among_what_would_be_replaced(sealed):
    """A checkpoint has its seal in its manifest, scores have theirs beside them."""
    scores = "results/scores/miniature/aside/seed0/sep.json"
    unseen_by_snakemake(sealed, CHECKPOINT, scores)
    changed = overlay(sealed, "steps: {aside: {models: {miniature: {settings: {training: {learning_rate: 0.25}}}}}}\n")
    _, printed = planned(sealed, *changed)
    assert "1 checkpoint, 2 sets of answers, 2 files of scores" in printed, printed


def unseen_by_snakemake(checkout: Checkout, *paths: str) -> None:
    """Mark results as Snakemake leaves them that was killed before it saw them finish."""
    incomplete = checkout.folder / ".snakemake" / "incomplete"
    incomplete.mkdir(parents=True)
    for path in paths:
        (incomplete / base64.b64encode(path.encode()).decode()).touch()


def test_with_replace_a_run_goes_on(sealed, monkeypatch):
    """As far as its first job, whose parent is no model."""
    asked_of_gpus(sealed, CHECKPOINT)
    changed = overlay(sealed, "steps: {aside: {models: {miniature: {settings: {training: {learning_rate: 0.25}}}}}}\n")
    gone_on = sealed.snakemake("--cores", "1", "--config", "replace=true", *changed, check=False)
    assert "nothing was started" not in gone_on.stdout
    assert "Finished results would be made again: 1 checkpoint" in gone_on.stdout
    assert "Error in rule apply_step" in gone_on.stdout


def asked_of_gpus(checkout: Checkout, path: str) -> None:
    """Let a result say that it was made with GPUs."""
    manifest = checkout.folder / path
    known = seals.read_manifest(manifest)
    seals.write_manifest(manifest, known | {"asked": known["asked"].replace("gpus=0", "gpus=4")})


OWN = """
models:
  mine:
    source: {path: my-model}
    template: alpaca
    resources: {train: {hours: 1, mem_gb: 1}, generate: {hours: 1, mem_gb: 1}}
datasets:
  my_tasks:
    kind: tasks
    source: {path: {test: my-tasks/a.jsonl}}
    splits: {test: test}
benchmarks: {tasks: {models: {mine: {dataset: my_tasks}}}}
"""
TASK = {"id": "0", "instruction": "name .", "input": "ben .", "output": "ben ."}
OWN_SCORES = "results/scores/mine/base/seed0/tasks.json"


@pytest.fixture
def own(checkout) -> Checkout:
    """Results over a model and records of the user's."""
    for name in ("my-model/config.json", "my-model/tokenizer.json", "my-model/pytorch_model.bin", "my-tasks/a.jsonl"):
        path = checkout.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"model_type": "llama"} if "model" in name else TASK), encoding="utf-8")
    plan, _ = planned(checkout, *overlay(checkout, OWN)[:-1], OWN_SCORES)
    fabricate(checkout, plan)
    assert "Nothing to be done" in planned(checkout, *overlay(checkout, OWN)[:-1], OWN_SCORES)[1]
    return checkout


@pytest.mark.parametrize(
    ("changed", "rule", "told"),
    [
        ("my-model/pytorch_model.bin", "adopt_model", "1 base model, 1 set of answers"),
        ("my-model/tokenizer.json", "adopt_model", "1 base model, 1 set of answers"),
        ("my-model/further.bin", "adopt_model", "1 base model, 1 set of answers"),
        ("my-tasks/a.jsonl", "prepare_dataset", "1 set of answers, 1 file of scores, 1 file of records"),
    ],
)
def test_every_file_of_a_users_model_and_data_is_watched(own, changed, rule, told):
    (own.folder / changed).write_text(json.dumps(TASK | {"instruction": "state all ."}), encoding="utf-8")
    plan, printed = planned(own, *overlay(own, OWN)[:-1], OWN_SCORES)
    assert states(plan)[rule, "stale"] == 1
    assert told in printed
    assert changed in printed


def test_a_new_cell_from_new_weights_tells_of_the_old_scores(own):
    (own.folder / "my-model/pytorch_model.bin").write_text("other", encoding="utf-8")
    new = "results/checkpoints/mine/base/seed1/checkpoint.json"
    _, printed = planned(own, *overlay(own, OWN)[:-1], new)
    assert "1 base model" in printed
    assert "stale then, because made from these: 1 set of answers, 1 file of scores" in printed


def test_a_source_that_has_gone_is_an_error_and_not_a_finished_result(own):
    shutil.rmtree(own.folder / "my-tasks")
    done = own.snakemake("--dry-run", *overlay(own, OWN)[:-1], OWN_SCORES, check=False)
    assert done.returncode != 0
    assert "Nothing to be done" not in done.stdout
    assert "my-tasks/a.jsonl" in done.stdout


def test_with_allowed_rules_the_results_of_all_others_are_taken_as_given(sealed):
    """No rule makes them in such a plan, which does not mean that nothing could."""
    (sealed.folder / "results/reports/smallest/tables/aside_sep.md").unlink()
    _, printed = planned(sealed, "--allowed-rules", "make_table", "--configfile", SMALLEST, "--", "table_aside_sep")
    assert "cannot be made any more" not in printed
    assert re.search(r"make_table +1\n", printed), printed
