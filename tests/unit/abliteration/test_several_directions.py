"""Several directions at once: principal ones, and those of a self-organising map."""

from __future__ import annotations

import math

import pytest
import torch
from abliteration_samples import Attacked, attack_settings, parameters, unit
from torch import Tensor

from bulwark.abliteration.edit.export import merge
from bulwark.abliteration.edit.targets import weight_of
from bulwark.abliteration.measure import som
from bulwark.abliteration.measure.directions import Choice, estimate
from bulwark.abliteration.settings import DirectionSettings, SomSettings
from bulwark.errors import ConfigurationError
from bulwark.models.residuals import Residuals

SIZE = 12
SMALL = SomSettings(rows=2, columns=2, iterations=2000, learning_rate=0.1, sigma=0.3)


def residuals(rows: Tensor) -> Residuals:
    """Of rows [n, layers, hidden]."""
    wide = rows.double()
    return Residuals(len(rows), wide.mean(0), wide.var(0, unbiased=False), rows)


def clusters(*centres: Tensor, each: int = 20) -> Tensor:
    """Rows [n, 1, hidden] around each centre."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(len(centres), each, SIZE, generator=generator, dtype=torch.float64)
    return (torch.stack(centres)[:, None] + noise).flatten(0, 1)[:, None].float()


def span_of(rows: Tensor) -> Tensor:
    """The projection onto the span of rows."""
    q = torch.linalg.qr(rows.double().T).Q
    return q @ q.T


A, B, C = (3 * unit(seed, SIZE) for seed in (1, 2, 3))
HARMLESS = residuals(clusters(0 * A))


def test_principal_directions_are_those_of_the_uncentred_differences():
    harmful = clusters(A, B, each=30)
    found = estimate(residuals(harmful), HARMLESS, DirectionSettings(methods=("principal",), most=3)).candidates
    rows = found["principal"][0]
    differences = harmful[:, 0].double() - HARMLESS.mean[0]
    _, vectors = torch.linalg.eigh(differences.T @ differences)  # another way to the same directions
    for number in range(3):
        assert abs(float(rows[number] @ vectors[:, -1 - number])) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(rows @ rows.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(span_of(rows[:2]), span_of(torch.stack([A, B])), atol=2e-2)


def test_a_map_finds_the_clusters_the_largest_first():
    samples = torch.cat([clusters(A, each=60), clusters(B, each=30), clusters(C, each=10)])
    neurons = som.trained(samples, SMALL, seed=3)[0]
    nearest = [int((neurons - centre).norm(dim=1).argmin()) for centre in (A, B, C)]
    for centre, number in zip((A, B, C), nearest, strict=True):
        assert float((neurons[number] - centre).norm()) < 0.2
    assert len(set(nearest)) == 3
    hit = torch.cdist(samples[:, 0].double(), neurons).argmin(1).bincount(minlength=4)
    assert hit.tolist() == sorted(hit.tolist(), reverse=True)


def test_one_neuron_is_the_mean_of_the_harmful_prompts():
    """Piras et al., Prop. 1: the difference of means is the case of a single neuron."""
    harmful = clusters(A, B)
    one = {"rows": 1, "columns": 1, "iterations": 20_000, "learning_rate": 0.02}
    settings = DirectionSettings.model_validate_json(
        '{"methods": ["som", "mean"], "som": ' + str(one).replace("'", '"') + "}"
    )
    found = estimate(residuals(harmful), HARMLESS, settings).candidates
    assert abs(float(found["som"][0, 0] @ found["mean"][0])) > 0.999


def test_the_map_of_harmful_prompts_is_seen_from_the_mean_of_the_harmless():
    """What the neurons have in common with harmless prompts is no direction of refusing."""
    one = SomSettings(rows=1, columns=1, iterations=20_000, learning_rate=0.02)
    found = estimate(residuals(clusters(A)), residuals(clusters(B)), DirectionSettings(methods=("som",), som=one))
    wanted = (A - B).double() / (A - B).double().norm()
    assert float(found.candidates["som"][0, 0] @ wanted) > 0.999


def test_neurons_move_as_by_hand():
    samples = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    settings = SomSettings(rows=2, columns=2, iterations=7, learning_rate=0.5, sigma=0.8)
    generator = torch.Generator().manual_seed(9)
    start = torch.randint(5, (4,), generator=generator).tolist()
    drawn = torch.randint(5, (7,), generator=generator).tolist()
    places = [(0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2), (1.5, math.sqrt(3) / 2)]
    found = som.trained(samples, settings, seed=9)
    for layer in range(2):
        neurons = [samples[number, layer].double() for number in start]
        for step, number in enumerate(drawn):
            x = samples[number, layer].double()
            best = min(range(4), key=lambda n: float((neurons[n] - x).norm()))
            for n in range(4):
                distance = math.dist(places[n], places[best])
                width = 0.8 / (1 + 2 * step / 7)
                rate = 0.5 / (1 + 2 * step / 7) * math.exp(-(distance**2) / (2 * width**2))
                neurons[n] = neurons[n] + rate * (x - neurons[n])
        for row in found[layer]:
            assert not row.any() or min(float((row - neuron).norm()) for neuron in neurons) < 1e-9


def test_neurons_that_nothing_is_nearest_to_give_no_direction():
    samples = clusters(A, each=3)
    settings = DirectionSettings(methods=("som",), most=9, som=SomSettings(rows=3, columns=3, iterations=50))
    rows = estimate(residuals(samples), HARMLESS, settings).candidates["som"][0]
    assert 1 <= int((rows.norm(dim=1) > 0.5).sum()) <= 3
    assert torch.isfinite(rows).all()


def test_a_trial_takes_as_many_as_it_says_of_the_nearest_layer():
    rows = clusters(A, B, C).expand(-1, 4, -1) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    found = estimate(residuals(rows), residuals(clusters(0 * A).expand(-1, 4, -1)),
                     DirectionSettings(methods=("principal",), most=3))  # fmt: skip
    own = found.at(1, Choice("principal", count=2))
    assert torch.equal(own, found.candidates["principal"][2, :2])
    assert torch.equal(found.at(0, Choice("principal", index=1.6, count=1)), found.candidates["principal"][3, :1])


def test_what_is_protected_is_kept_out_of_all_of_them():
    settings = DirectionSettings(methods=("principal",), most=2, orthogonalise=True)
    harmless = residuals(clusters(C))
    found = estimate(residuals(clusters(A, B)), harmless, settings)
    rows = found.at(-1, Choice("principal", count=2))
    mean = harmless.mean[0] / harmless.mean[0].norm()
    assert float((rows @ mean).abs().max()) < 1e-9
    assert torch.allclose(rows @ rows.T, torch.eye(2, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("method", ["principal", "som"])
def test_the_whole_span_is_gone_from_the_weights_and_hooks_did_the_same(method):
    small = {"rows": 2, "columns": 2, "iterations": 200}
    subject = Attacked(attack_settings(directions={"methods": [method], "most": 3, "som": small}))
    trial = parameters(1.0, 1.0, method=method)
    chosen = {name: Choice(method, count=3) for name in trial.choices}
    plan = subject.plan(type(trial)(chosen, trial.kernels))
    vectors, strength = next(iter(plan.values()))
    assert (vectors.shape[0], strength) == (3, 1.0)
    prompt = subject.prompts.harmful_search[0]
    with subject.edits.on([plan]) as rows, torch.inference_mode():
        rows.are(torch.zeros(1, dtype=torch.long))
        hooked = subject.model(input_ids=torch.tensor([prompt.ids])).logits
    targets = list(subject.edits.targets)
    merge(subject.model, subject.edits, plan)
    assert torch.allclose(subject.model(input_ids=torch.tensor([prompt.ids])).logits, hooked, atol=1e-4)
    for target in targets:
        assert float((plan[target.path][0] @ weight_of(target.module)).abs().max()) < 1e-4


def test_a_number_of_directions_needs_a_method_that_gives_several():
    with pytest.raises(ConfigurationError, match="only the methods principal and som give more than one"):
        attack_settings(directions={"most": 2})
