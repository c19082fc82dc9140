"""Plans of steered recipes."""

MINIATURE = ("--configfile", "config/miniature.yaml", "--")


def test_an_attack_on_an_embedded_checkpoint_is_a_chain(checkout):
    plan = checkout.plan(*MINIATURE, "results/checkpoints/miniature/pis_embedded+sft/seed0/checkpoint.json")
    assert plan["apply_step"] == 2
    assert plan["extract_vectors"] == 1
