"""Plans of tamper resistance at full scale: jobs and GPU hours, counted by hand, and a plan for every target."""

from collections import Counter
from pathlib import Path

import pytest

from bulwark.config import overlays

DEFENSES, ATTACKS, SEEDS = 7, 14, 3  # the first defense is none


def test_the_paper_is_a_target_whose_jobs_and_hours_are_those_counted_by_hand(checkout):
    found = checkout.planned_jobs("--", "study_tar")
    jobs = Counter(job.rule for job in found)
    # The base model is a start at every seed, though it is measured at one; TAR's first stage is a defense of its own.
    assert jobs["download_model"] == 1
    assert jobs["start_recipe"] == SEEDS
    assert jobs["apply_step"] == (DEFENSES - 1 + DEFENSES * ATTACKS) * SEEDS == 312
    measured = 1 + (DEFENSES - 1 + DEFENSES * ATTACKS) * SEEDS
    assert jobs["generate_answers"] == jobs["score_answers"] == 2 * measured == 626
    assert jobs["analyse_checkpoint"] == DEFENSES * SEEDS, "one attack on each defense is drawn over its steps"
    assert (jobs["make_table"], jobs["make_figure"]) == (1, 3)
    hours = {rule: sum(job.gpu_hours for job in found if job.rule == rule) for rule in jobs}
    # Eight cards of 989 TFLOP/s of which 15 % are reached; 8 FLOPs a token and parameter, 6 without recomputation, of
    # which adapters save 2. An attack sees 500 batches of 64 times 256 tokens,
    # one of them of 32.
    second, start = 8.03e9 / (8 * 989e12 * 0.15), 120 + 16.06
    attack = 500 * 64 * 256 * second
    attacks = (ATTACKS - 3) * (8 * attack + start) + (4 * attack + start) + 2 * (6 * attack + start)
    baselines = 4 * (2 * 600 * 64 * 256 * 8 * second + start)
    rmu = 1.5 * 2 * 250 * 8 * 256 * 6 * second + start
    passes = 4 / 3 + 32 + 16
    tar = 750 * 64 * 256 * 6 * passes * second + start
    # 18 hours on eight A100 of 312 TFLOP/s, the authors say
    tar *= 18 * 3600 / (750 * 64 * 256 * 6 * passes * second * 989 / 312 + start)
    trainings = (DEFENSES * attacks + baselines + rmu + tar) / 3600
    assert hours["apply_step"] == pytest.approx(trainings * SEEDS * 8, rel=1e-3)
    # And answers: 5.1 hours of an 8B model on one GPU, of which WMDP takes a fiftieth and MMLU a tenth.
    both = 2 * start / 3600 + (0.02 + 0.1) * 18_320 / 32 * 1_024 * 16.06e9 / (3.35e12 * 0.152) / 3600
    assert hours["generate_answers"] == pytest.approx(measured * both, rel=1e-3)
    assert sum(hours.values()) == hours["apply_step"] + hours["generate_answers"]


def test_every_table_and_figure_of_its_studies_has_a_plan(checkout):
    studies = overlays.read([], Path("config")).files[0].data["studies"]
    of_tar = {name: study for name, study in studies.items() if name.startswith("tar") or name.endswith("_red_team")}
    assert list(of_tar) == [
        "abliteration_red_team",
        *("tar", "tar_cyber", "tar_chem", "tar_refusal", "tar_analyses", "tar_red_team"),
        *("refusal_red_team", "aside_red_team", "steering_red_team"),
    ]
    targets = [f"study_{name}" for name, study in of_tar.items() if "tables" in study]
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
