"""Plans of the best of trials: by path, in chains, and ASIDE's sweep at full scale with its hours and its disk."""

import re
from collections import Counter

import pytest

MINIATURE = ("--configfile", "config/miniature.yaml")
GIGABYTES = 7.6e9 * 2 / 1e9  # of a checkpoint of Qwen2.5-7B, in bfloat16


def test_the_best_of_trials_can_be_asked_for_by_path_and_trained_on(checkout):
    asked = "results/scores/miniature/aside.best+relearn_unrotate/seed3/sep_test.json"
    done = checkout.snakemake("--dry-run", *MINIATURE, "--", asked)
    for rule, count in (("apply_step", 4 + 1), ("choose_trial", 1)):
        assert re.search(rf"^{rule} +{count}$", done.stdout, re.MULTILINE)
    assert "miniature, aside.3 (1 to make): training.batch_size 16, training.learning_rate 0.001" in done.stdout
    wrong = checkout.snakemake("--dry-run", *MINIATURE, "--", asked.replace("aside.best", "aside.bets"), check=False)
    assert wrong.returncode != 0
    assert 'unknown step "aside.bets". Did you mean' in wrong.stdout


def test_the_sweep_is_48_trainings_whose_hours_and_disk_are_those_counted_by_hand(checkout):
    found = checkout.planned_jobs("--", "study_aside_sweep")
    count = Counter(job.rule for job in found)
    assert count["apply_step"] == 3 * 2 * 4 * 2 == 48
    assert count["choose_trial"] == count["analyse_checkpoint"] == 3
    assert count["generate_answers"] == count["score_answers"] == 3, "only what is chosen meets the test part"
    # Three hours of a 13B model on eight cards (the paper, App. C), in proportion to 7.62 of 13.0 billion parameters.
    hours = {rule: sum(job.gpu_hours for job in found if job.rule == rule) for rule in count}
    assert hours["apply_step"] == pytest.approx(48 * 3.0 * 8 * 7.62 / 13.0, rel=0.05)
    # 5.1 hours of an 8B model for all of SEP (the notebooks of the authors), of which 0.9 are the test part.
    assert hours["generate_answers"] == pytest.approx(3 * 0.9 * 5.1 * 7.62 / 8.03, rel=0.05)
    assert 720 < count["apply_step"] * GIGABYTES < 768, "48 of 16 GB at most; what is chosen is linked"
