"""The two profiles: found by the users' command, made of known options, explained key by key, fit for the rules."""

import operator
import re
import subprocess
import sys
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROFILES = {name: ROOT / "profiles" / name / "config.yaml" for name in ("default", "slurm")}
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]
MINIATURE = ("--configfile", "config/miniature.yaml")


def keys(name: str) -> dict:
    """What a profile sets, on any condition, without what makes it a template."""
    read = yaml.safe_load(PROFILES[name].read_text())
    sometimes = [value for key, value in read.items() if key.startswith("?if ")]
    always = {key: value for key, value in read.items() if not key.startswith(("__", "?if "))}
    return reduce(operator.or_, sometimes, always)


@cache
def options() -> frozenset[str]:
    """Every long option of Snakemake and its installed plugins, without the dashes."""
    text = output_of(sys.executable, "-m", "snakemake", "--help")
    return frozenset(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", text))


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_users_command_finds_the_profile():
    link = ROOT / "slurm"
    assert link.is_symlink()
    assert (link / "config.yaml").resolve() == PROFILES["slurm"].resolve()
    assert output_of("git", "ls-files", "-s", "slurm").startswith("120000 "), "the link has to be committed as a link"


def test_the_slurm_profile_says_how_it_is_used_first():
    opening = PROFILES["slurm"].read_text().split("\n\n")[0]
    for part in ("snakemake --profile slurm all", "slurm -> profiles/slurm"):
        assert part in opening


@pytest.mark.parametrize("name", PROFILES)
def test_every_key_is_an_option_of_snakemake_or_its_plugin(name):
    assert set(keys(name)) <= options()


@pytest.mark.parametrize("name", PROFILES)
def test_every_key_is_explained_above_it(name):
    lines = PROFILES[name].read_text().splitlines()
    unexplained = [
        line
        for before, line in pairwise(lines)
        if re.match(r"\s*[a-z][\w-]*:", line) and not before.strip().startswith("#")
    ]
    assert unexplained == []


def test_the_keys_commented_out_are_options_too():
    examples = set(re.findall(r"^# ([a-z][a-z-]+):", PROFILES["slurm"].read_text(), re.MULTILINE))
    assert {"slurm-partition-config", "set-resources"} <= examples <= options()


def test_the_default_profile_sets_nothing_that_the_slurm_profile_sets():
    # It is always applied and wins key by key, so a key in both would silently be the default's.
    assert not set(keys("default")) & set(keys("slurm"))


def test_no_cluster_is_presumed():
    values = keys("slurm")
    resources = values["default-resources"]
    assert set(resources) == {"nodes", "runtime", "mem_mb", "gpus_as", "slurm_extra"}
    assert resources["slurm_extra"] == "'--signal=TERM@120'"  # names nothing of a cluster's own
    assert not {"slurm-qos", "slurm-reservation", "slurm-partition-config", "set-resources"} & set(values)


def test_seals_alone_trigger_and_retries_are_the_profiles():
    assert set(keys("default")["rerun-triggers"]) == {"params"}
    assert keys("slurm")["retries"] >= 1
    assert keys("slurm")["slurm-requeue"] is True


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_no_rule_repeats_itself_or_asks_for_tasks(file):
    # `retries` in a rule is repeated inside each allocation; `tasks` on a gpu job starts the script once per gpu.
    assert re.findall(r"^\s*(?:retries\s*:|tasks\s*=|[\"']tasks[\"']\s*:).*$", file.read_text(), re.MULTILINE) == []


def local_rules() -> set[str]:
    """Rules that run where Snakemake runs, read from their text (a dry run does not tell)."""
    rules = {}
    for file in RULES:
        for text in re.split(r"^(?=\s*rule\b)", file.read_text(), flags=re.MULTILINE):
            if named := re.match(r"rule (\w+):", text):
                rules[named[1]] = text
    return {name for name, text in rules.items() if re.search(r"^    localrule: True$", text, re.MULTILINE)}


def jobs_for_the_cluster(dry_run: str) -> list[dict[str, str]]:
    """Rule and resources of every job of a dry run but those of local rules."""
    jobs = []
    for job in re.split(r"^(?=rule \w+:$)", dry_run, flags=re.MULTILINE)[1:]:
        rule = re.match(r"rule (\w+):", job)[1]
        resources = re.search(r"^    resources: (.*)$", job, re.MULTILINE)[1]
        if rule not in local_rules():
            jobs.append({"rule": rule, **dict(re.findall(r"(\w+)=([^,]+)", resources))})
    return jobs


def test_every_job_for_the_cluster_states_what_it_needs(checkout):
    jobs = jobs_for_the_cluster(checkout.snakemake("--dry-run", "-p", "all").stdout)
    assert {job["rule"] for job in jobs} == {
        "apply_step",
        "extract_vectors",
        "generate_answers",
        "generate_contrasts",
        "project_dataset",
    }
    for job in jobs:
        # Without the profile, so without its defaults: the rules' own numbers.
        assert all(int(job[resource]) > 0 for resource in ("gpus_per_node", "nodes", "runtime", "mem_mb")), job
        assert "tasks" not in job


def test_the_miniature_asks_for_no_gpu_and_for_little_memory(checkout):
    jobs = jobs_for_the_cluster(checkout.snakemake("--dry-run", "-p", *MINIATURE, "--", "all").stdout)
    assert {job["rule"] for job in jobs} == {
        "pretrain_model",
        "apply_step",
        "extract_vectors",
        "generate_answers",
        "generate_contrasts",
        "project_dataset",
    }
    assert {int(job.get("gpus_per_node", 0)) for job in jobs} == {0}
    assert max(int(job["mem_mb"]) for job in jobs) <= 6000


def test_the_plan_for_a_cluster_can_be_made_without_one(checkout):
    plan = checkout.plan("--profile", "slurm", *MINIATURE, "--", "all")
    assert plan == checkout.plan(*MINIATURE, "--", "all")
