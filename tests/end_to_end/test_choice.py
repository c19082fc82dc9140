"""The best of trials through the workflow: two trials of four diverge, and one of the others is the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import SMALLEST, Checkout, jobs

pytestmark = pytest.mark.slow
CHOICE = ("--configfile", SMALLEST, "tests/config/choice.yaml")
DIVERGING = ("vanilla.1", "vanilla.3")  # the grid is batch size by learning rate


def checkpoint(recipe: str) -> str:
    return f"results/checkpoints/miniature/{recipe}/seed0/checkpoint.json"


def scores(recipe: str) -> str:
    return f"results/scores/miniature/{recipe}/seed0/sep.json"


def read(copy: Checkout, path: str) -> dict:
    return json.loads((copy.folder / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chosen(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A copy of the finished run with the study of the best trial; what the run printed."""
    copy = Checkout(tmp_path_factory.mktemp("choice") / "bulwark")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)
    return copy, copy.snakemake("--cores", "1", *CHOICE, "--", "all").stdout


def test_the_trial_of_lowest_validation_loss_is_the_checkpoint(chosen):
    copy, printed = chosen
    planned = jobs(printed)
    assert (planned["apply_step"], planned["choose_trial"], planned["generate_answers"]) == (4, 1, 1)
    losses = {f"vanilla.{n}": read(copy, checkpoint(f"vanilla.{n}"))["training"]["validation"][-1][1] for n in (0, 2)}
    made = read(copy, checkpoint("vanilla.best"))
    best = min(losses, key=losses.get)
    assert made["chosen"]["trial"] == best
    assert made["chosen"]["losses"] == losses
    assert made["files"] == read(copy, checkpoint(best))["files"]
    weights = [
        Path(copy.folder, checkpoint(recipe)).with_name("model.safetensors") for recipe in ("vanilla.best", best)
    ]
    assert os.path.samefile(*weights)
    table = (copy.folder / "results/reports/choice/tables/choice.md").read_text(encoding="utf-8")
    assert f"{losses[best]:.4f}" in table
    shown = copy.bulwark("show", checkpoint("vanilla.best")).stdout
    assert f"vanilla.best/seed0, {best}, the best of 4 by its validation loss of {losses[best]:.4f}" in shown


def test_trials_that_diverge_are_told_and_have_no_model(chosen):
    copy, _ = chosen
    left_out = read(copy, checkpoint("vanilla.best"))["chosen"]["left_out"]
    assert tuple(left_out) == DIVERGING
    log = (copy.folder / "results/logs/choose_trial/miniature/vanilla.best/seed0.log").read_text(encoding="utf-8")
    for trial in DIVERGING:
        assert "Training stopped at step" in left_out[trial]
        assert f"{trial} is not chosen: it diverged" in log
        assert read(copy, checkpoint(trial))["files"] == []
    copy.snakemake("--cores", "1", *CHOICE, "--", scores(DIVERGING[0]))
    measured = read(copy, scores(DIVERGING[0]))
    assert {metric["value"] for metric in measured["metrics"].values()} == {None}
    assert measured["reported"]["diverged"] == read(copy, checkpoint(DIVERGING[0]))["diverged"]
    failed = copy.snakemake("--cores", "1", *CHOICE, "--", checkpoint(f"{DIVERGING[0]}+vanilla"), check=False)
    assert failed.returncode != 0
    assert "the training of this trial diverged, so there is no model" in failed.stdout


def test_it_scores_as_the_trial_does_and_nothing_is_left_to_do(chosen):
    copy, _ = chosen
    assert copy.plan(*CHOICE, "--", "all") == {}
    best = read(copy, checkpoint("vanilla.best"))["chosen"]["trial"]
    copy.snakemake("--cores", "1", *CHOICE, "--", scores(best))
    assert read(copy, scores(best))["metrics"] == read(copy, scores("vanilla.best"))["metrics"]
    again = copy.plan(*CHOICE, "--forcerun", "choose_trial", "--", checkpoint("vanilla.best"))
    assert again == {"choose_trial": 1}
