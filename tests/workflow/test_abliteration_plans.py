"""Plans of attacks: any checkpoint, prompts of its own, the measure against the parent."""

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


def test_the_paper_is_a_target_at_full_scale(checkout):
    plan = checkout.plan("--", "study_abliteration")
    assert plan["apply_step"] == 5 * 6 * 3  # models, attacks, seeds
    assert plan["download_model"] == 5
