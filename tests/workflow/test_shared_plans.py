"""Plans of trainings that share a job: what shares one, what is wanted of it, and what it costs."""

from __future__ import annotations

import re

import pytest

TRIALS = ("--configfile", "config/miniature.yaml", "tests/config/smallest.yaml", "tests/config/trials.yaml")
SHARED = (*TRIALS, "tests/config/shared.yaml")
BY_PATH = "results/scores/miniature/vanilla+relearn_tried.2/seed0/sep.json"


def test_trainings_of_one_checkpoint_share_jobs_and_everything_else_stays(checkout):
    plain, shared = (checkout.plan(*overlays, "--", "all") for overlays in (TRIALS, SHARED))
    assert plain["apply_step"] == shared["take_shared"] == 2 * (1 + 4 + 4)
    assert "apply_step" not in shared
    # 0.1 hours hold five trainings of 0.02: at each seed all of the base model, and all of vanilla.
    assert shared["apply_steps"] == 2 * 2
    others = {rule: count for rule, count in shared.items() if rule not in ("apply_steps", "take_shared")}
    assert others == {rule: count for rule, count in plain.items() if rule != "apply_step"}


def test_a_plan_prices_shared_jobs_and_says_what_they_do(checkout):
    told = checkout.bulwark("plan", *SHARED, "--", "results/scores/miniature/base/seed0/sep.json", BY_PATH).stdout
    lines = told.partition("Trainings that share a job:\n")[2].partition("\n\n")[0].splitlines()
    assert lines == [
        "  miniature, base, seed 0: vanilla",
        "  miniature, vanilla, seed 0: relearn_tried.2",
        "  2 jobs start and load a model where 2 would",
    ], "what a path needs of its shared jobs, and nothing else of them"
    told = checkout.bulwark("plan", *SHARED, "--", "models").stdout
    assert (
        "  miniature, base, seed 1: vanilla, relearn_tried.0, relearn_tried.1, relearn_tried.2, relearn_tried.3\n"
        in told
    )
    assert "  4 jobs start and load a model where 18 would\n" in told
    row = re.search(r"steps +│ +(\d+) +│ +([\d.]+)", told)
    assert float(row[2]) == pytest.approx(0.36), "18 trainings of 0.02 hours each, and no more"
