"""What is planned for a table that shows what has not been made as missing."""

MINIATURE = ("--configfile", "config/miniature.yaml")


def test_a_partial_table_asks_for_nothing_that_is_not_there(checkout):
    plan = checkout.plan(*MINIATURE, "--config", "partial=true", "--", "table_aside_sep")
    assert plan == {"table_aside_sep": 1, "make_table": 1}
    assert checkout.plan(*MINIATURE, "--config", "partial=false", "--", "table_aside_sep")["pretrain_model"] == 1


def test_figures_and_claims_are_never_partial(checkout):
    plan = checkout.plan(*MINIATURE, "--config", "partial=true", "--", "figure_aside_sep")
    assert plan["pretrain_model"] == 1


def test_a_partial_table_is_written_and_says_what_is_missing(checkout):
    checkout.snakemake("--cores", "1", *MINIATURE, "--config", "partial=true", "--", "table_aside_sep")
    written = (checkout.folder / "results/reports/miniature/tables/aside_sep.md").read_text(encoding="utf-8")
    assert "| missing |" in written
    command = "snakemake --configfile config/miniature.yaml -c2 -- results/scores/miniature/base/seed0/sep.json"
    assert f"`{command}`" in written
    again = checkout.plan(*MINIATURE, "--", "table_aside_sep")
    assert again["make_table"] == 1, "without the option the table is made whole"
