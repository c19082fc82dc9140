"""The pocket on a CPU, all four systems and the cross table, with a random model and records that the test has made."""

from __future__ import annotations

import json

import pocket_samples
import pytest

FILES = ("config/pocket.yaml", "config/pocket_cpu.yaml", "pocket_test.yaml")
# What the tiny world has no use for, to save time; the rest is as config/pocket_cpu.yaml cuts it.
SHORTER = """\
models:
  mine: {resources: {train: {threads: 1}, generate: {threads: 1}}}
steps:
  vanilla: &short {settings: {training: {max_steps: 2, batch_size: 2, max_tokens: 128}}}
  # Answers are not rotated, so that after two steps the model still refuses and there is something to take out
  aside: {settings: {response_role: instruction, training: {max_steps: 2, batch_size: 2, max_tokens: 128}}}
  sft: *short
  sft_clean: *short
  random_map: *short
  relearn_bio_forget_2e-5: *short
  tar:
    settings:
      training: {max_steps: 2, batch_size: 2}
      inner: {steps: 2, every: 1, batch_size: 2, micro_batch_size: 2}
"""


@pytest.fixture
def pocket(checkout):
    pocket_samples.save_chat_model(checkout.folder / "my-model")
    pocket_samples.save_records(checkout.folder / "records")
    (checkout.folder / "pocket_test.yaml").write_text(pocket_samples.OVERLAY + SHORTER, encoding="utf-8")
    return checkout


@pytest.mark.slow
def test_the_pocket_runs_on_a_cpu_with_any_small_model(pocket):
    arguments = ("--configfile", *FILES)
    pocket.snakemake("--cores", "2", *arguments, "--quiet", "rules", "--", "all")
    made = pocket.folder / "results/reports/pocket_test"
    claims = {claim["id"]: claim["verdict"] for claim in json.loads((made / "claims.json").read_text())}
    assert set(claims) == {
        "aside_separates",
        "aside_resists_injections",
        "trait_is_learned",
        "steering_prevents",
        "abliteration_removes_refusals",
        "tar_resists",
        "aside_outlives_abliteration",
    }
    assert set(claims.values()) <= {"reproduced", "not reproduced", "contradicted", "undecided"}
    cross = (made / "tables/cross.md").read_text()
    for row in ("ASIDE", "TAR", "abliteration", "relearning facts"):
        assert row in cross
    scores = pocket.folder / "results/scores/mine"
    trait = json.loads((scores / "base/seed0/trait_evil.json").read_text())
    assert trait["n"] == 10
    science = json.loads((scores / "random_map+tar+relearn/seed0/cloze.json").read_text())
    assert science["n"] == 20
    assert pocket.plan(*arguments, "--", "all") == {}, "nothing is left to do"
