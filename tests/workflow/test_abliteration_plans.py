"""Plans of attacks: any checkpoint, prompts of its own, the resources of generation, the measure against the parent."""

import re

MINIATURE = ("--configfile", "config/miniature.yaml", "--")


def test_a_checkpoint_of_any_recipe_is_attacked_and_measured_against_itself_before(checkout):
    made = checkout.planned_outputs(*MINIATURE, "results/scores/miniature/aside+heretic/seed2/refusal.json")
    for path in (
        "results/checkpoints/miniature/aside/seed2/checkpoint.json",
        "results/checkpoints/miniature/aside+heretic/seed2/checkpoint.json",
        "results/data/miniature_refusal_harmful/validation.jsonl",
        "results/data/miniature_refusal_harmless/train.jsonl",
        "results/data/miniature_refusal/test.jsonl",
    ):
        assert path in made, path


def test_an_attack_takes_the_resources_of_generation(checkout):
    target = "results/checkpoints/llama3.1-8b-instruct/vanilla+heretic/seed0/checkpoint.json"
    plan = checkout.snakemake("--dry-run", target).stdout
    found = dict(
        re.findall(
            r"output: \S+/(vanilla(?:\+heretic)?)/seed0/checkpoint\.json.*?resources: [^\n]*?gpu=(\d+)", plan, re.S
        )
    )
    assert found == {"vanilla": "8", "vanilla+heretic": "1"}


def test_what_trials_are_measured_on_is_no_set_that_directions_come_from(checkout):
    overlay = checkout.folder / "same.yaml"
    overlay.write_text("steps: {heretic: {settings: {prompts: {search: train}}}}\n")
    target = "results/checkpoints/miniature/heretic/seed0/checkpoint.json"
    told = checkout.snakemake(
        "--dry-run", "--configfile", "config/miniature.yaml", "same.yaml", "--", target, check=False
    ).stdout
    assert 'directions and search are both the split "train"' in told
    assert "heretic" in told


def test_the_paper_is_a_target_at_full_scale(checkout):
    plan = checkout.plan("--", "paper_abliteration")
    assert plan["apply_step"] == 5 * 6 * 3  # models, attacks, seeds
    assert plan["download_model"] == 5
