"""Edits that gradients find: the loss against a formula by hand, and the whole step on the tiny model that refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from abliteration_samples import Attacked, assert_unedited, checkpoint, checksum, job_for, refusing_model, unrefusing
from torch.nn.functional import log_softmax

from bulwark.abliteration import optimised
from bulwark.abliteration.edit.edits import LowRank
from bulwark.abliteration.edit.export import merge
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of
from bulwark.abliteration.settings import GradientEditSettings
from bulwark.errors import BulwarkError
from bulwark.models import checkpoints
from bulwark.settings import validated
from bulwark.steps import gradient_edit

GIVEN: dict[str, Any] = {
    "prompts": {"harmful": "harmful", "harmless": "harmless"},
    "dtype": "float32",
    "rank": 2,
    "rounds": 2,
    "steps": 30,
    "batch_size": 4,
    "max_new_tokens": 6,
    "selection": {"kl_at_most": 0.5},
}


def settings(**changes: Any) -> GradientEditSettings:
    return validated(GradientEditSettings, GIVEN | changes, "here")


@pytest.fixture
def subject() -> Attacked:
    return Attacked()


def random_factors(subject: Attacked, size: float = 0.3) -> dict[str, LowRank]:
    factors = optimised.drawn(subject.examiner, 2, 0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for factor in factors.values():
            factor.a.copy_(size * torch.randn(factor.a.shape, generator=generator))
    return factors


def test_the_loss_is_the_formula_by_hand(subject):
    given = settings(kl_at_most=0.01, kl_weight=3.0, refusal_tokens=2)
    examiner = subject.examiner
    refusals, harmless = optimised.refused(examiner, given, None)[:3], optimised.complied(examiner)[:2]
    factors = random_factors(subject)
    found = float(optimised.objective(examiner, factors, refusals, harmless, given).detach())

    model = refusing_model()
    plain = refusing_model()
    merge(model, Edits(targets_of(model)), factors)
    unlikely, divergence = [], []
    for example in refusals:
        ids = torch.tensor([example.prompt.ids])
        logs = log_softmax(model(input_ids=ids).logits[0], -1)
        own = [float(logs[at - 1, ids[0, at]]) for at in range(example.start, ids.shape[1])]
        assert len(own) == 2
        unlikely.append(-math.log(1 - math.exp(sum(own) / len(own))))
    for example in harmless:
        ids = torch.tensor([example.prompt.ids])
        before, after = (log_softmax(m(input_ids=ids).logits[0], -1) for m in (plain, model))
        for at in range(example.start, ids.shape[1]):
            divergence.append(float((before[at - 1].exp() * (before[at - 1] - after[at - 1])).sum()))
    kl = sum(divergence) / len(divergence)
    assert kl > 0.01
    expected = sum(unlikely) / len(unlikely) + 3.0 * (kl - 0.01)
    assert found == pytest.approx(expected, rel=1e-3)
    within = settings(kl_at_most=100.0, kl_weight=3.0, refusal_tokens=2)
    assert float(optimised.objective(examiner, factors, refusals, harmless, within).detach()) == pytest.approx(
        sum(unlikely) / len(unlikely), rel=1e-3
    )


def test_refusals_count_from_the_token_that_the_prompts_say(subject):
    prompts = subject.prompts.harmful_directions
    for after, tokens in ((0, 2), (1, 1)):
        given = settings(prompts=GIVEN["prompts"] | {"after": after}, refusal_tokens=tokens)
        for prompt, example in zip(prompts, optimised.refused(subject.examiner, given, None), strict=True):
            assert example.start == len(prompt.ids) + after
            assert len(example.prompt.ids) == example.start + tokens


def test_it_begins_with_no_edit_and_gradients_reach_the_factors_alone(subject):
    examiner = subject.examiner
    examiner.model.requires_grad_(False)
    factors = optimised.drawn(examiner, 3, 0)
    plan = dict(factors)
    assert float(examiner.divergences(1, None).mean()) == pytest.approx(0, abs=1e-6)
    with examiner.edits.on([plan]) as rows:
        assert float(examiner.divergences(1, rows).detach().mean()) == pytest.approx(0, abs=1e-6)
    given = settings()
    refusals, harmless = optimised.refused(examiner, given, None), optimised.complied(examiner)
    optimised.objective(examiner, factors, refusals[:2], harmless[:2], given).backward()
    assert all(float(factor.a.grad.abs().max()) > 0 for factor in factors.values())
    assert all(parameter.grad is None for parameter in examiner.model.parameters())


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("parent"))


def run(folder: Path, parent: Path, **changes: Any) -> dict[str, Any]:
    job = job_for("gradient_edit", folder, parent)
    return gradient_edit.run(job, settings(**changes))


def test_the_step_ends_refusals_within_its_bound_and_exports_what_it_measured(tmp_path, parent):
    told = run(tmp_path / "model", parent)
    trials = [json.loads(line) for line in (tmp_path / "model" / "trials.jsonl").read_text().splitlines()]
    assert [trial["parameters"]["steps"] for trial in trials] == [30, 60][: len(trials)]
    best = next(trial for trial in trials if trial["chosen"])
    assert best["refusals"] <= 4  # of 16
    assert best["kl"] <= 0.5
    exported = told["abliteration"]["exported"]
    assert exported["kl"] == pytest.approx(best["kl"], rel=1e-2, abs=1e-4)
    assert exported["equal_verdicts"] == 1
    assert told["release"] == "never"
    assert told["adapter"] == "adapter"
    assert checksum(checkpoints.load_model(parent.parent, "float32")) == checksum(refusing_model())


def test_the_same_seed_gives_the_same_weights(tmp_path, parent):
    for name in ("one", "two"):
        run(tmp_path / name / "model", parent, rounds=1, steps=5)
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_without_a_penalty_the_same_steps_cost_more(tmp_path, parent):
    costs = []
    for name, weight in (("bound", 100.0), ("free", 0.0)):
        run(tmp_path / name / "model", parent, rounds=1, kl_weight=weight, kl_at_most=0.0, selection={})
        costs.append(json.loads((tmp_path / name / "model" / "trials.jsonl").read_text())["kl"])
    assert costs[0] < costs[1]


def test_a_model_that_refuses_nothing_is_not_attacked_or_saved_as_it_is(tmp_path):
    parent = unrefusing(tmp_path / "parent")
    with pytest.raises(BulwarkError, match=r"none of the harmful.*nothing to remove"):
        run(tmp_path / "model", parent)
    folder = tmp_path / "unedited" / "model"
    assert_unedited(folder, parent, run(folder, parent, outcome={"nothing_to_remove": "unedited"}))
