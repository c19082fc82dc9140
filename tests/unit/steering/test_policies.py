"""Decisions: strict thresholds, ties and empty rows safe, and what of a micro-batch is learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from screening_samples import (
    LAYER,
    batch_of,
    delta_loss,
    model_of,
    policies,
    probe,
    references_of,
    state_aware,
    vector_of,
)
from training_samples import examples

from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.screening.detectors import Detector, counts_of, per_row_mean
from bulwark.steering.screening.split import target_rows
from bulwark.training.objectives import target_logits


def detector_of(model=None) -> Detector:
    return Detector(model or model_of(), LAYER, vector_of())


def learned(verdict) -> torch.Tensor:
    return torch.where(verdict.kept, verdict.losses, 0.0).sum()


def natural_losses(model, batch) -> torch.Tensor:
    return F.cross_entropy(target_logits(model, batch), batch.targets, reduction="none")


@pytest.mark.parametrize("name", [name for name in policies() if name != "inject"])
def test_the_gradient_is_that_of_the_kept_tokens_alone(name):
    model, batch = model_of(), batch_of(9)
    verdict = policies()[name].judge(detector_of(model), batch, 0.5)
    assert 0 < sum(decision != "kept" for decision in verdict.decisions) < 9
    learned(verdict).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    if name == "mask_token":
        detector = detector_of(model)
        hidden = detector.split.trunk(batch)
        natural = detector.split.token_losses(hidden, batch).detach()
        kept = detector.injected_losses(hidden, batch, policies()[name].intervention, 0.5) >= natural
        torch.testing.assert_close(verdict.weight, per_row_mean(kept.float(), batch))
    else:
        kept = torch.tensor([decision == "kept" for decision in verdict.decisions])[target_rows(batch)]
        assert verdict.weight.tolist() == [float(decision == "kept") for decision in verdict.decisions]
    natural_losses(model, batch)[kept].sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()], rtol=1e-4, atol=1e-6)


def test_inject_learns_flagged_rows_steered_and_the_others_as_they_are():
    model, batch = model_of(), batch_of(9)
    verdict = policies()["inject"].judge(detector_of(model), batch, 0.5)
    flagged = torch.tensor([decision == "injected" for decision in verdict.decisions])
    assert 0 < flagged.sum() < 9
    assert flagged.tolist() == (verdict.scores["delta_mean"] < 0).tolist()
    assert verdict.weight.tolist() == [1.0] * 9
    learned(verdict).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with Intervention(model, {LAYER: vector_of()}).on(token_mask(batch, "response"), 0.5 * flagged):
        natural_losses(model, batch).sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()], rtol=1e-4, atol=1e-6)


def deciding(name: str, batch) -> tuple[dict, float]:
    """The scores of a batch, and one row's deciding score, to set the threshold exactly there."""
    verdict = policies()[name].judge(detector_of(), batch, 0.5)
    score = {"mask": "delta_mean", "mask_min": "delta_min", "inject": "delta_mean", "state": "dp"}[name]
    return verdict.scores, float(verdict.scores[score][0])


@pytest.mark.parametrize("name", ["mask", "mask_min", "inject"])
def test_delta_at_the_threshold_is_safe_and_below_it_is_not(name):
    batch = batch_of(9)
    changes = {"mode": "inject" if name == "inject" else "mask", "strategy": "min" if name == "mask_min" else "mean"}
    _, value = deciding(name, batch)
    above = float(torch.nextafter(torch.tensor(value), torch.tensor(torch.inf)))
    at, over = (
        delta_loss(threshold=threshold, **changes).judge(detector_of(), batch, 0.5) for threshold in (value, above)
    )
    assert at.decisions[0] == "kept"
    assert over.decisions[0] in ("dropped", "injected")


def test_a_token_at_the_threshold_is_learned_and_one_below_it_is_not():
    detector, batch = detector_of(), batch_of(9)
    hidden = detector.split.trunk(batch)
    natural = detector.split.token_losses(hidden, batch).detach()
    policy = delta_loss(granularity="token")
    delta = detector.injected_losses(hidden, batch, policy.intervention, 0.5) - natural
    policy.threshold = float(delta.median())
    kept = policy.judge(detector, batch, 0.5).kept
    assert kept.tolist() == (delta >= delta.median()).tolist()
    assert bool(kept[delta == delta.median()].all())
    assert not kept.all()


def test_drift_is_against_the_untouched_model_on_the_same_text():
    """Its projection there is 1 in the samples, and that of its own answer 0."""
    scores = state_aware().judge(detector_of(), batch_of(4), 0.0).scores
    assert torch.equal(scores["drift"], scores["p_cur"] - 1.0)
    assert torch.equal(scores["dp"], scores["p_cur"])


def test_a_state_at_the_margin_is_safe():
    batch = batch_of(9)
    _, value = deciding("state", batch)
    below = float(torch.nextafter(torch.tensor(value), torch.tensor(-torch.inf)))
    assert state_aware(margin=value).judge(detector_of(), batch, 0.0).decisions[0] == "kept"
    assert state_aware(margin=below).judge(detector_of(), batch, 0.0).decisions[0] == "dropped"


def test_a_probe_needs_both_scores_above_their_thresholds():
    batch = batch_of(9)
    scores = probe().judge(detector_of(), batch, 0.0).scores
    row = int(scores["probe_cos"].argmax())
    cos, proj = float(scores["probe_cos"][row]), float(scores["probe_proj"][row])
    assert min(cos, proj) > 0
    for thresholds, decision in [
        ((cos / 2, proj / 2), "dropped"), ((cos, proj / 2), "kept"), ((cos / 2, proj), "kept"), ((2, -9), "kept"),
    ]:  # fmt: skip
        assert probe(*thresholds).judge(detector_of(), batch, 0.0).decisions[row] == decision


@pytest.mark.parametrize(
    "policy", [delta_loss(threshold=9.0), delta_loss(granularity="token", threshold=99.0), probe(cos=-2.0, proj=-99.0),
               state_aware(margin=-99.0)], ids=["mask", "token", "probe", "state"],
)  # fmt: skip
def test_a_row_without_supervised_tokens_is_never_flagged(policy):
    data = examples(4)
    data[2] = replace(data[2], labels=[-100] * len(data[2].ids))
    batch = batch_of(data=data)
    verdict = policy.judge(detector_of(), batch, 0.5)
    expected = ["no_target" if count == 0 else "flagged" for count in counts_of(batch).tolist()]
    assert [d if d == "no_target" else "flagged" for d in verdict.decisions] == expected
    assert "kept" not in verdict.decisions
    assert verdict.weight.tolist() == [0.0] * 4


@pytest.mark.parametrize("policy", [probe(cos=-2.0, proj=-99.0), state_aware(margin=-99.0)], ids=["probe", "state"])
def test_with_all_rows_flagged_every_gradient_is_there_and_0(policy):
    model = model_of()
    verdict = policy.judge(detector_of(model), batch_of(), 0.0)
    assert set(verdict.decisions) == {"dropped"}
    assert not verdict.kept.any()
    learned(verdict).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_flagged_rows_do_not_go_on_above_the_layer():
    model, batch = model_of(), batch_of(9)
    seen = []
    model.model.layers[LAYER].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    verdict = state_aware().judge(detector_of(model), batch, 0.0)
    assert seen == [verdict.decisions.count("kept")]
    assert 0 < seen[0] < 9
    means = verdict.scores["loss_nat"]
    assert means.isnan().tolist() == [decision == "dropped" for decision in verdict.decisions]


def test_rows_without_a_reference_are_kept():
    references = references_of(value=-99.0)
    references["r1"]["excluded"] = "empty baseline answer"
    references["r3"]["ref_projection"] = None
    batch = batch_of()
    verdict = state_aware(references=references).judge(detector_of(), batch, 0.0)
    told = {row[0]: decision for row, decision in zip(batch.rows, verdict.decisions, strict=True)}
    assert told == {0: "dropped", 1: "kept", 2: "dropped", 3: "kept", 4: "dropped"}
    drift = {row[0]: value for row, value in zip(batch.rows, verdict.scores["drift"].tolist(), strict=True)}
    p_cur = {row[0]: value for row, value in zip(batch.rows, verdict.scores["p_cur"].tolist(), strict=True)}
    assert {number for number, value in drift.items() if value != value} == {1}
    assert drift[3] == pytest.approx(p_cur[3] - 1.0)
