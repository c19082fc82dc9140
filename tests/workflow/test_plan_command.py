"""`bulwark plan` and the summary of a dry run: they add up, and what is proposed to be run first costs what is said."""

import re

import pytest

MINIATURE = ("--configfile", "config/miniature.yaml")


def hours(text: str) -> float:
    return float(text.replace(",", ""))


def test_a_plan_tells_hours_disk_downloads_and_judges_and_what_to_run_first(checkout):
    done = checkout.bulwark("plan", "--gpus", "16", "--", "study_aside")
    for part in ("by study", "by model", "by stage", "Wall time", "on 16 GPUs", "Disk", "gated", "Judges", "gpt-4"):
        assert part in done.stdout, part
    for line in ("Snakemake makes the plan", "jobs cost"):
        assert re.search(f"^bulwark: .*{line}", done.stderr, re.MULTILINE), (
            "progress, a line each, where no one looks on"
        )
    jobs = checkout.planned_jobs("--", "study_aside")
    total = sum(job.gpu_hours for job in jobs)
    totals = [
        (int(n.replace(",", "")), hours(h))
        for n, h in re.findall(r"^│ all +│ +([\d,]+) │ +([\d,.]+) ", done.stdout, re.M)
    ]
    assert len(totals) == 3
    assert all(count == len(jobs) and value == pytest.approx(total, abs=0.6) for count, value in totals)


def test_a_plan_of_the_miniature_is_told_to_its_end(checkout):
    """Some of its studies are left out: they have no models."""
    done = checkout.bulwark("plan", *MINIATURE, "--", "all")
    for part in ("core hours", "Wall time", "cores", "What to run first"):
        assert part in done.stdout, part
    assert "Traceback" not in done.stderr


def test_what_is_proposed_first_costs_what_is_said(checkout):
    done = checkout.bulwark("plan", "all")
    first = done.stdout.split("What to run first", 1)[1]
    said, whole = map(hours, re.search(r"jobs, ([\d,.]+) of ([\d,.]+) GPU hours", first).groups())
    assert 0 < said <= 0.1 * whole
    overlay = re.search(r"^ +name: first\n(.*\n)+?(?=\s*\n)", first, re.MULTILINE)[0]
    lines = [line.removeprefix("    ") for line in overlay.splitlines()]
    (checkout.folder / "first.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    jobs = checkout.planned_jobs("--configfile", "first.yaml", "--", "all")
    assert sum(job.gpu_hours for job in jobs) == pytest.approx(said, rel=0.01)


def test_a_dry_run_counts_its_jobs_by_rule_and_study_and_lists_them_with_p(checkout):
    short = checkout.snakemake("-n", *MINIATURE, "--", "study_aside").stdout
    assert "rule apply_step:" not in short
    for part in ("Job stats:", "core hours", "Every job: the same with -p", "bulwark plan"):
        assert part in short
    assert re.search(r"^  aside +\d+ jobs ", short, re.MULTILINE)
    assert len(short.splitlines()) < 80
    for option in ("-np", "-n -p"):
        full = checkout.snakemake(*option.split(), *MINIATURE, "--", "study_aside").stdout
        assert full.count("rule apply_step:") == 9
        assert "core hours" not in full
    quiet = checkout.snakemake("-n", "--quiet", "host", *MINIATURE, "--", "study_aside").stdout
    assert "rule apply_step:" in quiet, "what a user says of --quiet holds"


def test_a_number_of_gpus_that_is_none_or_too_small_is_an_error(checkout):
    for given, said in (("none", "whole number"), ("4", "needs 8 GPUs")):
        done = checkout.bulwark("plan", f"--gpus={given}", "table_aside_sep", check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
