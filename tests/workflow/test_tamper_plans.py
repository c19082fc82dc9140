"""Plans of tamper resistance at full scale: jobs and GPU hours, counted by hand, and a plan for every target."""

from pathlib import Path

from bulwark.config import overlays
from bulwark.config.costs import costs

DEFENSES, ATTACKS, SEEDS = 7, 14, 3  # the first defense is none


def test_the_paper_is_a_target_whose_jobs_and_hours_are_those_counted_by_hand(checkout):
    done = checkout.snakemake("--dry-run", "--", "paper_tar")
    found = costs(done.stdout)
    jobs = {rule: cost.jobs for rule, cost in found.items()}
    # The base model is a start at every seed, though it is measured at one; TAR's first stage is a defense of its own.
    assert jobs["download_model"] == 1
    assert jobs["start_recipe"] == SEEDS
    assert jobs["apply_step"] == (DEFENSES - 1 + DEFENSES * ATTACKS) * SEEDS == 312
    measured = 1 + (DEFENSES - 1 + DEFENSES * ATTACKS) * SEEDS
    assert jobs["generate_answers"] == jobs["score_answers"] == 2 * measured == 626
    assert jobs["analyse_checkpoint"] == DEFENSES * SEEDS, "one attack on each defense is drawn over its steps"
    assert (jobs["make_table"], jobs["make_figure"]) == (1, 3)
    # config/models/llama3-8b-instruct.yaml: a training takes 3 hours on 8 GPUs; a step's `cost` is a multiple of it.
    max_entropy, min_posterior, llmu, rmu, random_map, tar, attack = 1, 1, 1, 1.5, 1, 6, 1
    trainings = max_entropy + min_posterior + llmu + rmu + random_map + tar + DEFENSES * ATTACKS * attack
    assert round(found["apply_step"].gpu_hours, 1) == trainings * SEEDS * 3.0 * 8 == 7884
    # And answers 5 hours on one GPU, of which WMDP takes a fiftieth and MMLU a tenth.
    assert round(found["generate_answers"].gpu_hours, 1) == round(measured * 5.0 * (0.02 + 0.1), 1) == 187.8
    assert sum(cost.gpu_hours for rule, cost in found.items() if rule not in ("apply_step", "generate_answers")) == 0


def test_every_table_and_figure_of_its_studies_has_a_plan(checkout):
    studies = overlays.read([], Path("config")).files[0].data["studies"]
    of_tar = {name: study for name, study in studies.items() if name.startswith("tar") or name.endswith("_red_team")}
    assert list(of_tar) == [
        *("tar", "tar_cyber", "tar_chem", "tar_refusal", "tar_analyses", "tar_red_team"),
        *("refusal_red_team", "aside_red_team", "steering_red_team"),
    ]
    targets = [f"paper_{name}" for name, study in of_tar.items() if "tables" in study]
    for study in of_tar.values():
        targets += [f"{kind}_{name}" for kind in ("table", "figure") for name in study.get(f"{kind}s", ())]
    plan = checkout.plan("--", *targets)
    assert {target: plan[target] for target in targets} == dict.fromkeys(targets, 1)
    assert plan["make_table"] == sum(target.startswith("table_") for target in targets)
    assert plan["make_figure"] == sum(target.startswith("figure_") for target in targets)


def test_studies_ask_for_none_of_the_data_that_are_the_users_own(checkout):
    """Without them there is no plan, so `all` would have none."""
    made = checkout.planned_outputs("--", "data")
    assert "results/data/pile_bio_forget/train.jsonl" in made
    for name in ("chem_forget", "ood_forget", "economics", "plain_refusal", "extended_refusal"):
        assert not [path for path in made if f"/{name}/" in path]
