"""What would be run: dry runs of every target, counts of jobs, and errors before any job."""

import re

MINIATURE = ("--configfile", "config/miniature.yaml")


def test_the_full_paper_has_a_plan(checkout):
    assert checkout.plan("--", "study_aside") == {
        "study_aside": 1,
        "download_dataset": 14,
        "prepare_dataset": 15,
        "download_model": 6,
        "start_recipe": 6,
        "apply_step": 18,
        "generate_answers": 24 * 16,
        "score_answers": 24 * 16,
        "make_table": 5,
        "make_figure": 3,
    }


def test_a_single_table_of_a_paper_needs_its_own_rows_only(checkout):
    plan = checkout.plan("--", "table_steering_scope")
    assert plan["apply_step"] == 3 * 3
    assert plan["extract_vectors"] == 3 * 3
    assert plan["download_model"] == 1


def test_the_cross_table_has_every_defense_under_every_attack(checkout):
    plan = checkout.plan(*MINIATURE, "--", "cross")
    assert (plan["make_table"], plan["make_figure"]) == (2, 1)
    attacks, knowing = 6, 10  # trials by themselves; of attacks that are made on the defense that they know alone
    recipes = 8 * (1 + attacks) + knowing
    assert plan["generate_answers"] == plan["score_answers"] == 5 * recipes
    assert plan["analyse_checkpoint"] == recipes - 1
    assert plan["apply_step"] == recipes - 1 + 2, "random_map and aside+random_map stand before TAR"


def test_the_miniature_is_the_same_study_over_another_model(checkout):
    plan = checkout.plan(*MINIATURE, "--", "study_aside")
    assert plan["pretrain_model"] == 1
    assert plan["apply_step"] == 3 * 3
    assert plan["generate_answers"] == 3 * (3 * 3 + 1), "the base model is measured at one seed only"
    assert "download_model" not in plan


def test_the_menu_lists_targets_with_what_they_make(checkout):
    menu = checkout.snakemake("--list-target-rules").stdout
    for target in (
        "all (",
        "data (",
        "models (",
        "evaluations (",
        "claims (",
        "table_aside_sep",
        "figure_aside_sep",
        "study_aside",
    ):
        assert target in menu
    assert "unknown_target" not in menu


def test_every_target_of_the_menu_has_a_plan(checkout):
    targets = [
        "data",
        "models",
        "evaluations",
        "analyses",
        "claims",
        "table_aside_sep",
        "figure_aside_sep",
        "study_aside",
    ]
    plan = checkout.plan(*MINIATURE, "--", *targets)
    assert {target: plan[target] for target in targets} == dict.fromkeys(targets, 1)


def test_any_chain_of_steps_can_be_asked_for_by_path(checkout):
    made = checkout.planned_outputs("results/scores/qwen2.5-7b/vanilla+aside+ise/seed3/sep.json")
    for recipe in ("base", "vanilla", "vanilla+aside", "vanilla+aside+ise"):
        assert f"results/checkpoints/qwen2.5-7b/{recipe}/seed3/checkpoint.json" in made


def test_an_unknown_name_ends_the_workflow_with_the_nearest_one(checkout):
    done = checkout.snakemake("--dry-run", "results/scores/miniature/vanilla+asdie/seed0/sep.json", check=False)
    assert done.returncode != 0
    for part in ("results/scores/miniature/vanilla+asdie", '"asdie"', 'Did you mean "aside"?'):
        assert part in done.stdout
    done = checkout.snakemake("--dry-run", "study_asid", check=False)
    assert done.returncode != 0
    assert 'target "study_asid"' in done.stdout
    assert 'Did you mean "aside"?' in done.stdout


def test_the_path_of_another_configurations_report_is_refused(checkout):
    done = checkout.snakemake("--dry-run", *MINIATURE, "--", "results/reports/papers/tables/aside_sep.md", check=False)
    assert done.returncode != 0
    assert 'belongs to the configuration "papers", and this one is "miniature"' in done.stdout
    assert "results/reports/miniature/tables/aside_sep.md" in checkout.planned_outputs(
        *MINIATURE, "--", "table_aside_sep"
    )


def test_a_mistake_in_an_overlay_ends_the_workflow_before_any_job(checkout):
    (checkout.folder / "overlay.yaml").write_text("name: mine\nstuides: {}")
    done = checkout.snakemake("--dry-run", "--configfile", "overlay.yaml", "--", "all", check=False)
    assert done.returncode != 0
    assert '"stuides"' in done.stdout
    assert 'Did you mean "studies"?' in done.stdout


def test_without_the_gpus_it_needs_a_run_stops_before_its_first_job(checkout, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = checkout.snakemake("--cores", "1", "table_aside_sep", check=False)
    assert done.returncode != 0
    for part in ("needs 8", "here are 0", "snakemake --profile slurm all", "config/miniature.yaml"):
        assert part in done.stdout
    assert not (checkout.folder / "results" / "downloads").exists()


def test_a_method_added_to_the_list_adds_its_own_jobs_only(checkout):
    before = checkout.plan(*MINIATURE, "--", "study_aside")
    (checkout.folder / "overlay.yaml").write_text(
        "name: mine\nstudies: {aside: {recipes: [base, vanilla, ise, aside, vanilla+aside]}}"
    )
    after = checkout.plan("--configfile", "config/miniature.yaml", "overlay.yaml", "--", "study_aside")
    added = {rule: after[rule] - before[rule] for rule in after if after[rule] != before[rule]}
    assert added == {"apply_step": 3, "generate_answers": 9, "score_answers": 9}


def test_the_picture_of_the_dag_shows_every_rule(checkout):
    listed = checkout.snakemake("--list-rules").stdout
    rules = {line.split(" ")[0] for line in listed.splitlines() if re.match(r"^[a-z_]+( \(|$)", line)}
    targets = {
        "all",
        "data",
        "models",
        "evaluations",
        "analyses",
        "claims",
        "cross",
        "unknown_target",
        "unknown_report",
    }
    targets |= {rule for rule in rules if rule.startswith(("table_", "figure_", "study_", "paper_"))}
    source = (checkout.folder / "docs" / "dag.dot").read_text(encoding="utf-8")
    picture = (checkout.folder / "docs" / "dag.svg").read_text(encoding="utf-8")
    assert "apply_step" in rules - targets
    for rule in rules - targets:
        assert re.search(rf"\b{rule}\b", source), rule
        assert rule in picture, rule
