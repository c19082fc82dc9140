"""Plans of trials: a study's, one that is asked for by path, and what a plan says of them."""

TRIALS = ("--configfile", "config/miniature.yaml", "tests/config/smallest.yaml", "tests/config/trials.yaml")


def test_a_study_plans_its_trials_and_what_is_shown_of_them(checkout):
    plan = checkout.plan(*TRIALS, "--", "all")
    assert plan["apply_step"] == 2 * (1 + 4 + 4), "at two seeds vanilla, four trials of it and four of the base model"
    assert plan["generate_answers"] == plan["score_answers"] == 2 * (1 + 2 * 9)
    assert plan["analyse_checkpoint"] == 2 * 9
    (checkout.folder / "more.yaml").write_text("name: more\nstudies: {trials: {trials: {relearn_tried: 7}}}")
    more = checkout.plan(*TRIALS, "more.yaml", "--", "all")
    assert more["apply_step"] - plan["apply_step"] == 2 * 2 * 3


def test_a_plan_prices_trials_and_names_their_settings(checkout):
    told = checkout.bulwark("plan", *TRIALS, "--", "all").stdout
    assert "by stage" in told
    lines = told.partition("Trials and their settings:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"  miniature, relearn_tried.{n}" for n in range(4)]
    for line in lines:
        assert "(4 to make): training.batch_size " in line
        assert "training.learning_rate 0.00" in line


def test_any_trial_can_be_asked_for_by_path_and_trained_on(checkout):
    asked = "results/scores/miniature/relearn_tried.300+vanilla/seed3/sep.json"
    made = checkout.planned_outputs(*TRIALS, "--", asked)
    assert "results/checkpoints/miniature/relearn_tried.300/seed3/checkpoint.json" in made
    done = checkout.snakemake("--dry-run", *TRIALS, "--", "results/scores/miniature/sft.3/seed0/sep.json", check=False)
    assert done.returncode != 0
    assert '"sft.3" is trial 3 of the step "sft", which has no space' in done.stdout
