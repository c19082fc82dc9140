"""The mistakes of tests/planted/ still apply, and their claims are checked in miniature. `make planted` runs them."""

import ast

import pytest
import yaml

from bulwark.config import loading, overlays, plan_reports
from tests import planted

EVERY = planted.mistakes()
CONFIG = planted.ROOT / "config"


def test_there_are_ten_at_least_and_of_every_system():
    assert len(EVERY) >= 10
    assert len({mistake.name for mistake in EVERY}) == len(EVERY)
    assert {mistake.claim.split("_")[0] for mistake in EVERY} >= {"aside", "steering", "one", "abliteration", "tar"}


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


@pytest.mark.parametrize(
    ("before", "after", "became"),
    [
        ("reproduced", "contradicted", "flip"),
        ("reproduced", "undecided", "flip"),
        ("reproduced", "stopped", "stopped"),
        ("reproduced", "reproduced", "UNNOTICED"),
        ("undecided", "not reproduced", "UNNOTICED"),
    ],
)
def test_what_becomes_of_a_mistake(before, after, became):
    assert planted.Found(EVERY[0], before, after).became == became


def of(flips, stopped, unnoticed):
    after = ["contradicted"] * flips + ["stopped"] * stopped + ["reproduced"] * unnoticed
    return [planted.Found(EVERY[0], "reproduced", verdict) for verdict in after]


def test_mistakes_that_a_check_stops_are_no_flips_and_make_up_for_none():
    assert planted.counted(of(9, 3, 1)) == {"flip": 9, "stopped": 3, "UNNOTICED": 1}
    assert planted.enough(of(9, 3, 1))
    assert not planted.enough(of(8, 3, 1))
    assert planted.enough(of(10, 0, 0))


def test_the_table_has_a_line_for_each_mistake():
    lines = planted.table(of(1, 1, 1)).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["flip |", "stopped |", "UNNOTICED |"]
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines[2:])


def test_claims_of_one_study_are_laid_over_it_together():
    both = planted.overlay("trait_is_learned", "steering_prevents")["studies"]["steering_analyses"]
    assert both["claims"] == ["trait_is_learned", "steering_prevents"]
    assert both["recipes"] == ["sft_clean", "sft", "steer"]
    assert both["seeds"] == [0]


def test_what_leads_to_a_recipe_is_taken_too():
    """The folder of a snapshot is that of its training."""
    assert planted.recipes("tar_resists") == [
        "base", "random_map", "random_map+tar", "random_map+relearn", "random_map+relearn@25", "random_map+tar+relearn",
        "random_map+tar+relearn@25",
    ]  # fmt: skip


def test_the_world_is_taken_as_given_and_all_else_made_again():
    known = planted.rules()
    assert not set(known) & set(planted.WORLD)
    assert {"apply_step", "take_snapshot", "generate_answers", "score_answers", "extract_vectors", "claims"} <= set(
        known
    )
    every = [path.read_text(encoding="utf-8") for path in (planted.ROOT / "workflow" / "rules").glob("*.smk")]
    assert all(any(f"rule {rule}:" in text for text in every) for rule in planted.WORLD)


def test_results_are_taken_without_those_of_other_claims(tmp_path):
    base, tree = tmp_path / "base", planted.Tree(tmp_path / "tree", 1)
    tree.tree.mkdir()
    kept = ["models/miniature/model.json", "data/miniature_sep/test.jsonl", "scores/miniature/aside/seed0/sep.json"]
    others = ["models/other/model.json", "scores/miniature/aside/seed1/sep.json", "scores/miniature/sft/seed0/sep.json"]
    for name in (*kept, *others):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name, encoding="utf-8")
    tree.take(["aside_separates"], base)
    assert sorted(str(path.relative_to(tree.results)) for path in tree.results.rglob("*.json*")) == sorted(kept)


def mistaken(tmp_path, monkeypatch, again):
    """A run with a mistake in which Snakemake does nothing but make these results again; the verdict, and the file."""
    tree = planted.Tree(tmp_path, 1)
    file = tmp_path / EVERY[0].file
    file.parent.mkdir(parents=True)
    file.write_text(f"x = {{{EVERY[0].old}}}", encoding="utf-8")
    seen = []

    def run(*claims, given):
        seen.append((file.read_text(encoding="utf-8"), given))
        for name in again:
            (tree.results / name).parent.mkdir(parents=True)
            (tree.results / name).write_text("{}", encoding="utf-8")
        return dict.fromkeys(claims, "reproduced")

    monkeypatch.setattr(tree, "verdicts", run)
    return tree.with_mistake(EVERY[0]), seen, file.read_text(encoding="utf-8")


def test_a_run_has_the_mistake_in_its_file_and_none_afterwards(tmp_path, monkeypatch):
    verdict, [(text, given)], left = mistaken(tmp_path, monkeypatch, ["scores/miniature/aside/seed0/sep.json"])
    assert verdict == "reproduced"
    assert EVERY[0].new in text
    assert left == f"x = {{{EVERY[0].old}}}"
    assert given[0] == "--allowed-rules"


def test_a_mistake_in_code_that_makes_nothing_of_the_claim_tells_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"no result of {EVERY[0].claim} is made with this code"):
        mistaken(tmp_path, monkeypatch, ["reports/planted/claims.json"])
