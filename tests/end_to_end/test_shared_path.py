"""Trainings that share a job, through the workflow: each is made and done by itself."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import Checkout, jobs

TRIALS = ("--configfile", "config/miniature.yaml", "tests/config/smallest.yaml", "tests/config/trials.yaml")
SHARED = (*TRIALS, "tests/config/shared.yaml")


def checkpoint(recipe: str) -> str:
    return f"results/checkpoints/miniature/{recipe}/seed0/checkpoint.json"


MADE = [checkpoint(recipe) for recipe in ("vanilla", "relearn_tried.0", "relearn_tried.2")]


@pytest.fixture(scope="module")
def shared(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str, bytes]:
    """A copy of the finished run in which two trials of a shared job are made; what it printed; vanilla as it was."""
    copy = Checkout(tmp_path_factory.mktemp("shared") / "bulwark")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)
    before = (copy.folder / MADE[0]).read_bytes()
    return copy, copy.snakemake("--cores", "1", *SHARED, "--", *MADE).stdout, before


def test_what_is_asked_for_is_made_by_one_job_and_nothing_else(shared):
    copy, printed, before = shared
    planned = jobs(printed)
    assert (planned["apply_steps"], planned["take_shared"]) == (1, 2), (
        "vanilla was there already, from a job of its own"
    )
    assert (copy.folder / MADE[0]).read_bytes() == before
    assert not (copy.folder / checkpoint("relearn_tried.1")).exists()
    record = json.loads((copy.folder / "results/logs/apply_steps/miniature/base/seed0/0.json").read_text())
    assert record == {"made": ["relearn_tried.0", "relearn_tried.2"], "failed": {}}
    log = (copy.folder / "results/logs/apply_step/miniature/relearn_tried.2/seed0.log").read_text()
    assert "The parent's weights were read 1 times, copied 1 times." in log
    assert "Warning" not in printed


def test_the_results_are_done_with_and_without_shared_jobs(shared):
    copy, *_ = shared
    assert copy.plan(*SHARED, "--", *MADE) == {}
    assert copy.plan(*TRIALS, "--", *MADE) == {}
