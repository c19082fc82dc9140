"""Plans of the best of trials: by path, in chains, and ASIDE's sweep at full scale with its hours and its disk."""

from bulwark.config.costs import costs

MINIATURE = ("--configfile", "config/miniature.yaml")
GIGABYTES = 7.6e9 * 2 / 1e9  # of a checkpoint of Qwen2.5-7B, in bfloat16


def test_the_best_of_trials_can_be_asked_for_by_path_and_trained_on(checkout):
    asked = "results/scores/miniature/aside.best+relearn_unrotate/seed3/sep_test.json"
    done = checkout.snakemake("--dry-run", *MINIATURE, "--", asked)
    found = costs(done.stdout)
    assert (found["apply_step"].jobs, found["choose_trial"].jobs) == (4 + 1, 1)
    assert found["choose_trial"].gpu_hours == 0
    assert "miniature, aside.3 (1 to make): training.batch_size 16, training.learning_rate 0.001" in done.stdout
    wrong = checkout.snakemake("--dry-run", *MINIATURE, "--", asked.replace("aside.best", "aside.bets"), check=False)
    assert wrong.returncode != 0
    assert 'unknown step "aside.bets". Did you mean' in wrong.stdout


def test_the_sweep_is_48_trainings_whose_hours_and_disk_are_those_counted_by_hand(checkout):
    found = costs(checkout.snakemake("--dry-run", "--", "paper_aside_sweep").stdout)
    jobs = {rule: cost.jobs for rule, cost in found.items()}
    assert jobs["apply_step"] == 3 * 2 * 4 * 2 == 48
    assert jobs["choose_trial"] == jobs["analyse_checkpoint"] == 3
    assert jobs["generate_answers"] == jobs["score_answers"] == 3, "only what is chosen meets the test part"
    # config/models/qwen2.5-7b.yaml: a training takes 3 hours on 8 GPUs, and all of SEP 5 hours on one.
    assert round(found["apply_step"].gpu_hours, 1) == 48 * 3.0 * 8 == 1152
    assert round(found["generate_answers"].gpu_hours, 1) == 3 * 5.0 * 0.9 == 13.5
    assert 720 < jobs["apply_step"] * GIGABYTES < 768, "48 of 16 GB at most; what is chosen is linked"
