"""What is asked of a job, in a line: what it covers, and what it says of a difference."""

import re

import pytest

from bulwark.config.standing.asked import asked, differences, gpus_of, same
from tests.conftest import ROOT

PARAMS = {
    "kind": "aside",
    "settings": {"data": "x", "training": {"learning_rate": 0.1, "epochs": 3}},
    "code": "0123",
    "cells": [{"model": "m"}],
}
WILDCARDS = ("mine", "vanilla+aside", "0")


def test_the_same_work_is_asked_for_in_the_same_words():
    again = {name: PARAMS[name] for name in reversed(PARAMS)}
    again["settings"] = {"training": {"epochs": 3, "learning_rate": 0.1}, "data": "x"}
    assert same(asked("apply_step", WILDCARDS, PARAMS), asked("apply_step", WILDCARDS, again))


@pytest.mark.parametrize(
    "changed",
    [
        ("generate_answers", WILDCARDS, PARAMS),
        ("apply_step", ("mine", "vanilla+aside", "1"), PARAMS),
        ("apply_step", ("mine", "vanilla", "aside", "0"), PARAMS),
        ("apply_step", WILDCARDS, PARAMS | {"code": "0124"}),
        ("apply_step", WILDCARDS, PARAMS | {"kind": None}),
        ("apply_step", WILDCARDS, PARAMS | {"cells": []}),
        ("apply_step", WILDCARDS, PARAMS | {"settings": {"data": "x", "training": {"learning_rate": 0.1}}}),
        ("apply_step", WILDCARDS, {name: PARAMS[name] for name in ("kind", "settings", "code")}),
    ],
)
def test_every_difference_counts(changed):
    assert not same(asked("apply_step", WILDCARDS, PARAMS), asked(*changed))


def test_the_line_tells_the_settings_apart():
    one = asked("apply_step", WILDCARDS, PARAMS).split(" ")
    other = asked(
        "apply_step",
        WILDCARDS,
        PARAMS | {"settings": {"data": "x", "training": {"learning_rate": 0.2, "epochs": 3}}},
    ).split(" ")
    assert one[1] == "apply_step:mine/vanilla+aside/0"
    assert [a.split("=")[0] for a, b in zip(one[1:], other[1:], strict=True) if a != b] == ["settings.training"]


def test_one_object_under_two_names_is_told_under_both():
    shared = {"a": 1}
    line = asked("rule", (), {"one": shared, "two": shared})
    assert re.findall(r"(\S+)=", line) == ["gpus", "one.a", "two.a"]


def test_the_number_of_gpus_is_told_and_does_not_count():
    one, other = (asked("apply_step", WILDCARDS, PARAMS, gpus) for gpus in (0, 8))
    assert same(one, other)
    assert (gpus_of(one), gpus_of(other)) == (0, 8)
    assert differences(one, other) == ("", [])


@pytest.mark.parametrize("line", ["", "0123", "a b c d", "0123 what gpus=many"])
def test_a_line_of_another_kind_is_different_and_no_more(line):
    assert gpus_of(line) == 0
    assert not same(line, asked("rule", (), {}))
    differences(line, asked("rule", (), {}))


def test_every_rule_with_a_script_says_what_is_asked_of_it():
    """A result of a shared job is asked for as apply_step's, and the job itself for each of its parts."""
    named = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule, body in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)*)", path.read_text(encoding="utf-8"), re.M):
            if "script:" in body:
                named[rule] = re.findall(r"\*\*decided\(\s*\"(\w+)\"", body) + re.findall(
                    r"\*\*decided_by_(\w+),", body
                )
    assert len(named) >= 20
    shared = {"apply_step": ["step"], "take_shared": ["step"], "apply_steps": []}
    assert named == {rule: [rule] for rule in named} | shared
    steps = (ROOT / "workflow" / "rules" / "steps.smk").read_text(encoding="utf-8")
    assert re.search(r"^decided_by_step = decided\(\s*\"apply_step\"", steps, re.M)
    assert 'told["asked"]' in (ROOT / "workflow" / "scripts" / "apply_steps.py").read_text(encoding="utf-8")


def test_every_script_seals_what_its_job_makes():
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "workflow" / "scripts").glob("*.py")}
    assert len(scripts) >= 20
    assert not [
        name
        for name, text in scripts.items()
        if not re.search(r"call_of\(snakemake\)|sealing_of\(snakemake\)|Sealing\(", text)
        and name != "take_shared.py"  # makes nothing: the shared job has sealed it
    ]
