"""The mistakes of tests/planted/ still apply, and their claims are checked in miniature. `make planted` runs them."""

import ast
import subprocess
import sys

import pytest
import yaml

from bulwark.config import loading, overlays, plan_reports
from tests import planted

EVERY = planted.mistakes()
CONFIG = planted.ROOT / "config"


def test_there_are_ten_at_least_and_of_every_system():
    assert len(EVERY) >= 10
    assert len({mistake.name for mistake in EVERY}) == len(EVERY)
    assert {mistake.claim.split("_")[0] for mistake in EVERY} >= {"aside", "steering", "one", "tar"}


@pytest.mark.parametrize("mistake", EVERY, ids=lambda mistake: mistake.name)
def test_mistakes_apply_to_what_is_there_now(mistake):
    changed = mistake.applied((planted.ROOT / mistake.file).read_text(encoding="utf-8"))
    ast.parse(changed)
    with pytest.raises(ValueError, match="stands 0 times"):
        mistake.applied(changed.replace(mistake.old, ""))


@pytest.mark.parametrize("claim", sorted({mistake.claim for mistake in EVERY}))
def test_the_study_of_a_claim_is_cut_to_what_the_claim_needs(tmp_path, claim):
    path = tmp_path / "planted.yaml"
    path.write_text(yaml.safe_dump(planted.overlay(claim)), encoding="utf-8")
    catalogue = loading.load(overlays.read([CONFIG / "miniature.yaml", path], CONFIG), CONFIG)
    shown = plan_reports.claims(catalogue)
    assert list(shown.spec) == [claim]
    needed = {cell["scores"] for cell in shown.cells[claim]}
    measured = {cell["scores"] for cell in plan_reports.measured(catalogue).cells}
    assert needed
    assert len(measured - needed) <= len(needed), "more is measured than the claim asks for"
    assert not plan_reports.shown(catalogue)


def test_a_mistake_is_seen_if_the_verdict_is_another_one():
    assert planted.seen([("reproduced", "contradicted"), ("reproduced", "reproduced")]) == (1, 2)


def test_a_mistake_is_in_the_module_and_not_in_the_file(tmp_path):
    """The digest of code, by which results are made again, is of the file."""
    (tmp_path / "sitecustomize.py").write_text(planted.HOOK, encoding="utf-8")
    source = planted.ROOT / "src"
    told = {
        "PLANTED_FILE": "src/bulwark/errors.py",
        "PLANTED_OLD": "class BulwarkError(",
        "PLANTED_NEW": "PLANTED = 1\n\n\nclass BulwarkError(",
    }
    asked = (
        "import bulwark.errors as e; from bulwark.config.digests import code_digest as d;"
        "print(getattr(e, 'PLANTED', 0), d('bulwark.errors:BulwarkError'))"
    )
    run = [sys.executable, "-c", asked]
    plain, changed = (
        subprocess.run(run, env={"PYTHONPATH": path, **more}, capture_output=True, text=True, check=True).stdout.split()
        for path, more in ((str(source), {}), (f"{tmp_path}:{source}", told))
    )
    assert (plain[0], changed[0]) == ("0", "1")
    assert plain[1] == changed[1]
