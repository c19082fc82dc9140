"""The scores: what they are mathematically, and that taking them together or in parts makes no difference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from screening_samples import LAYER, batch_of, model_of, records_of, references_of, vector_of
from tiny_causal_models import FAMILIES
from training_samples import PAD, example, examples

from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.screening.detectors import (  # fmt: skip
    Detector,
    counts_of,
    curvature_scores,
    delta_scores,
    on_grid,
    per_row_mean,
    score_rows,
)
from bulwark.steering.screening.settings import DetectorSettings, PerturbationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.training.objectives import target_logits


def detector_of(model=None) -> Detector:
    return Detector(model or model_of(), LAYER, vector_of())


def taken(detector: Detector, batch, **perturbation):
    hidden = detector.split.trunk(batch).detach()
    return hidden, detector.probe(hidden, batch, PerturbationSettings(**perturbation))


def losses_at(model, batch, alpha: float) -> torch.Tensor:
    """Each row's mean loss [batch] under the intervention on the whole model."""
    steering = Intervention(model, {LAYER: vector_of()})
    with torch.no_grad(), steering.on(token_mask(batch, "response"), alpha):
        logits = target_logits(model, batch)
    return per_row_mean(F.cross_entropy(logits.double(), batch.targets, reduction="none"), batch)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("tokens", ["response", "predicting", "all"])
def test_injected_losses_are_those_of_an_intervention_on_the_whole_model(tokens, adaptive):
    model, batch = model_of(), batch_of()
    settings = InterventionSettings(alpha=0.7, tokens=tokens, adaptive=adaptive)
    detector = detector_of(model)
    found = detector.injected_losses(detector.split.trunk(batch), batch, settings, 0.7)
    steering = Intervention(model, {LAYER: vector_of()}, adaptive=adaptive)
    with torch.no_grad(), steering.on(token_mask(batch, tokens), 0.7):
        expected = F.cross_entropy(target_logits(model, batch), batch.targets, reduction="none")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_natural_and_injected_rows_in_one_batch_are_as_in_two_passes(family):
    detector, batch, settings = detector_of(model_of(family)), batch_of(), InterventionSettings()
    hidden = detector.split.trunk(batch)
    natural, injected = detector.both_losses(hidden, batch, settings, 0.8)
    torch.testing.assert_close(natural, detector.split.token_losses(hidden, batch).detach())
    torch.testing.assert_close(injected, detector.injected_losses(hidden, batch, settings, 0.8))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_strength_delta_is_exactly_0(family):
    detector, batch = detector_of(model_of(family)), batch_of()
    hidden = detector.split.trunk(batch)
    injected = detector.injected_losses(hidden, batch, InterventionSettings(), 0.0)
    natural = detector.split.token_losses(hidden, batch).detach()
    for pair in ((natural, injected), detector.both_losses(hidden, batch, InterventionSettings(), 0.0)):
        scores = delta_scores(*pair, batch)
        assert not any(scores[name].any() for name in ("delta_mean", "delta_min", "frac_tokens_negative"))


@pytest.mark.parametrize("derivative", ["finite", "exact"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_D1_and_D2_are_the_derivatives_of_the_loss_by_the_strength(derivative, checkpointing):
    """In float64, where GPT-NeoX stays: norms of RMS compute in float32 whatever they get.

    Gradients that differ by a step of 1e-3 along v give D2 to that order, and D1 as exactly as differentiating twice.
    """
    model, batch, step = model_of("gpt_neox", dtype=torch.float64).train(), batch_of(), 1e-3
    minus, at, plus = (losses_at(model, batch, alpha) for alpha in (-step, 0.0, step))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    detector = detector_of(model)
    _, scores = taken(detector, batch, relative=None, alpha=1e-3, derivative=derivative)
    of_loss = {"D1": (plus - minus) / (2 * step), "D2": (plus - 2 * at + minus) / step**2}
    for name, tolerance in (("D1", 3e-5), ("D2", 4e-4 if derivative == "exact" else 1e-2)):
        largest = float(of_loss[name].abs().max())
        torch.testing.assert_close(scores[name].double(), of_loss[name], rtol=0, atol=tolerance * largest, msg=name)
    torch.testing.assert_close(scores["loss_nat"].double(), at, rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_and_differentiating_twice_agree(family):
    detector, batch = detector_of(model_of(family)), batch_of()
    _, finite = taken(detector, batch, relative=0.002)
    _, exact = taken(detector, batch, derivative="exact")
    for name in ("probe_cos", "probe_proj", "probe_norm", "D2"):
        torch.testing.assert_close(finite[name], exact[name], rtol=0.05, atol=0.03 * float(exact[name].abs().max()))
    assert "loss_inj" not in exact
    assert "delta_mean" in finite


def test_the_probe_of_a_row_does_not_depend_on_the_others():
    model, data = model_of(), examples(5)
    together = taken(detector_of(model), batch_of(data=data))[1]
    order = [row[0] for row in batch_of(data=data).rows]
    for place, number in enumerate(order):
        alone = taken(detector_of(model), batch_of(data=[data[number]]))[1]
        for name, values in alone.items():
            torch.testing.assert_close(values[0], together[name][place], rtol=2e-2, atol=2e-4, msg=name)


def test_saving_memory_in_the_probe_changes_nothing_but_the_number_of_forward_passes():
    model, batch = model_of().train(), batch_of()
    model.activation_checkpointing_enable({"use_reentrant": False})
    passes, scores = [], []
    upper = model.model.layers[LAYER].mlp
    handle = upper.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for recompute in (True, False):
        passes.clear()
        scores.append(taken(detector_of(model), batch, recompute=recompute)[1])
        assert sum(passes) == (2 if recompute else 1)
    handle.remove()
    assert all(block.gradient_checkpointing for block in model.model.layers)
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


def test_what_the_probe_measures_on_a_known_curvature():
    """If the loss of every token bends with 3 along v alone, c̄ is 3v over the number of tokens."""
    batch, vector = batch_of(data=[example([5, 6, 7, 8, 9], 4)]), vector_of()
    mask = token_mask(batch, "response")
    curvature = 3.0 * mask.float().unsqueeze(-1) * vector
    scores = curvature_scores(torch.zeros_like(curvature), curvature, mask, vector)
    torch.testing.assert_close(scores["probe_cos"], torch.ones(1))
    torch.testing.assert_close(scores["probe_proj"], 3.0 * vector.norm().reshape(1) / 4)
    torch.testing.assert_close(scores["D2"], 3.0 * vector.dot(vector).reshape(1))


def test_the_size_of_the_step_is_relative_to_the_hidden_states_or_as_it_is_set():
    detector, batch = detector_of(), batch_of()
    hidden, scores = taken(detector, batch, relative=0.1)
    mask = token_mask(batch, "response")
    norms = torch.stack([hidden[row][mask[row]].norm(dim=-1).mean() for row in range(len(hidden))])
    torch.testing.assert_close(scores["alpha"] * vector_of().norm(), 0.1 * norms)
    plain = taken(detector, batch, relative=None, alpha=0.01)[1]
    divided = taken(detector, batch, relative=None, alpha=0.01, diff_epsilon=0.02)[1]
    assert plain["alpha"].tolist() == pytest.approx([0.01] * 5)
    torch.testing.assert_close(divided["probe_proj"], plain["probe_proj"] / 2)
    torch.testing.assert_close(divided["probe_cos"], plain["probe_cos"])


def test_in_bfloat16_a_relative_step_is_seen():
    """The authors' a = 0.01 changes few elements of h in bfloat16; a share of ‖h‖ does."""
    batch = batch_of()
    _, exact = taken(detector_of(), batch, derivative="exact")
    _, seen = taken(detector_of(model_of(dtype=torch.bfloat16)), batch, relative=0.05)
    torch.testing.assert_close(seen["probe_cos"], exact["probe_cos"], atol=0.15, rtol=0)


def test_delta_min_and_the_share_of_tokens_below_0():
    batch = batch_of(data=[example([5, 6, 7, 8, 9], 3), example([5, 6, 7], 1)])
    scores = delta_scores(torch.zeros(4), torch.tensor([-1.0, 2.0, 2.0, 0.5]), batch)
    torch.testing.assert_close(scores["delta_mean"], torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(scores["delta_min"], torch.tensor([-1.0, 0.5]))
    torch.testing.assert_close(scores["frac_tokens_negative"], torch.tensor([1 / 3, 0.0]))


def test_a_row_without_supervised_tokens_scores_0():
    data = examples(3)
    data[1] = replace(data[1], labels=[-100] * len(data[1].ids))
    batch, detector = batch_of(data=data), detector_of()
    empty = counts_of(batch) == 0
    hidden, scores = taken(detector, batch)
    natural = detector.split.token_losses(hidden, batch).detach()
    injected = detector.injected_losses(hidden, batch, InterventionSettings(), 1.0)
    scores |= delta_scores(natural, injected, batch) | detector.state(hidden, batch)
    assert empty.sum() == 1
    for name in scores.keys() - {"alpha"}:
        assert scores[name].isfinite().all(), name
        assert float(scores[name][empty]) == 0.0, name


def test_p_is_the_mean_projection_over_the_response_on_the_vector_with_its_norm():
    detector, batch = detector_of(), batch_of()
    hidden = detector.split.trunk(batch).detach()
    mask = token_mask(batch, "response")
    expected = torch.stack([(hidden[row][mask[row]] @ vector_of()).mean() for row in range(len(hidden))])
    torch.testing.assert_close(detector.state(hidden, batch)["p_cur"], expected)


def test_values_stand_where_their_targets_are():
    batch = batch_of(data=[example([5, 6, 7, 8], 2), example([5, 6, 7], 1)])
    grid = on_grid(torch.tensor([1.0, 2.0, 3.0]), batch, fill=9.0)
    assert grid.tolist() == [[9, 1, 2, 9], [9, 3, 9, 9]]


def test_all_scores_of_examples_in_their_order():
    data, records, references = examples(7), records_of(7), references_of(7, 0.25)
    references["r2"]["excluded"] = "empty baseline answer"
    settings = DetectorSettings(intervention=InterventionSettings(alpha=0.3), batch_size=3)
    told = {"records": records, "references": references, "pad_id": PAD}
    rows = score_rows(model_of(), data, LAYER, vector_of(), settings, **told)
    assert [row["row_id"] for row in rows] == list(range(7))
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(7)]
    assert [row["level"] for row in rows] == [0, 1, 2, 0, 1, 2, 0]
    assert (rows[2]["p_ref"], rows[2]["dp"]) == (None, None)
    assert rows[0]["dp"] == pytest.approx(rows[0]["p_cur"] - 0.25)
    for name in ("loss_nat", "loss_inj", "delta_mean", "delta_min", "D1", "D2", "probe_cos", "probe_proj", "p_cur"):
        assert all(isinstance(row[name], float) for row in rows)
    model, batch = model_of(), batch_of(data=data)
    difference = losses_at(model, batch, 0.3) - losses_at(model, batch, 0.0)
    for place, row in enumerate(batch.rows):
        assert rows[row[0]]["delta_mean"] == pytest.approx(float(difference[place]), abs=1e-5)
        assert rows[row[0]]["n_prompt"] + rows[row[0]]["n_resp"] == len(data[row[0]].ids)
        assert rows[row[0]]["alpha"] == pytest.approx(0.3)
