"""The tent over the layers, refusal directions, and what is kept out of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from abliteration_samples import unit
from torch import Tensor

from bulwark.abliteration.edit.kernel import Kernel
from bulwark.abliteration.measure.directions import (
    Choice,
    Directions,
    benign_subspace,
    cosines,
    estimate,
    interpolated,
    joint_basis,
    normalised,
    without,
)
from bulwark.abliteration.settings import DirectionSettings
from bulwark.models.residuals import Residuals

LAYERS, D, N = 4, 24, 30
EXACT = 1e-12


def rows(seed: int, shift: float = 0.0, n: int = N, layers: int = LAYERS) -> Tensor:
    """Residuals [n, L+1, d] with a mean of their own, float32-exact values in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, layers + 1, D, generator=generator) * torch.linspace(0.5, 3, D)
    return drawn + shift + torch.randn(layers + 1, D, generator=generator)


def residuals(kept: Tensor) -> Residuals:
    wide = kept.double()
    return Residuals(len(kept), wide.mean(0), wide.var(0, correction=0), kept)


HARMFUL, HARMLESS = residuals(rows(1, 0.7)), residuals(rows(2))


def estimated(bad: Residuals = HARMFUL, good: Residuals = HARMLESS, seed: int = 0, **changes) -> Directions:
    return estimate(bad, good, DirectionSettings(**changes), seed)


# The tent


@pytest.mark.parametrize(("peak", "distance"), [(2, 2.0), (2.5, 1.5), (0, 3.0), (3, 1.0), (1.25, 2.75)])
def test_the_tent_has_its_weight_at_the_peak_and_its_least_at_its_foot(peak, distance):
    kernel = Kernel(1.2, peak, 0.3, distance)
    for layer in range(8):
        away = abs(layer - peak)
        expected = 0.0 if away > distance else 1.2 + away / distance * (0.3 - 1.2)
        assert kernel.weight(layer) == pytest.approx(expected, abs=EXACT)
    if peak == int(peak):
        assert kernel.weight(int(peak)) == 1.2
    for foot in (peak - distance, peak + distance):
        if foot == int(foot) and foot >= 0:
            assert kernel.weight(int(foot)) == pytest.approx(0.3, abs=EXACT)


def test_a_tent_without_least_weight_is_the_pure_one_and_a_tent_without_weight_edits_nothing():
    pure = Kernel(2.0, 3.0, 0.0, 4.0)
    assert pure.profile(9) == pytest.approx([max(0.0, 2.0 * (1 - abs(layer - 3) / 4)) for layer in range(9)])
    assert Kernel(0.0, 3.0, 0.0, 4.0).profile(9) == [0.0] * 9


def test_a_tent_of_no_width_edits_its_peak_alone():
    assert Kernel(1.5, 2.0, 0.5, 0.0).profile(4) == [0.0, 0.0, 1.5, 0.0]


def test_the_weight_falls_linearly_between_the_peak_and_the_foot():
    profile = Kernel(1.4, 0.0, 0.2, 6.0).profile(7)
    steps = [b - a for a, b in itertools.pairwise(profile)]
    assert steps == pytest.approx([-0.2] * 6)


# Estimators


@pytest.mark.parametrize("method", ["mean", "median", "variance"])
def test_directions_have_unit_length_and_change_sign_with_the_classes(method):
    methods = tuple(dict.fromkeys(("mean", method)))
    there, back = estimated(methods=methods), estimated(HARMLESS, HARMFUL, methods=methods)
    assert torch.allclose(there.candidates[method].norm(dim=1), torch.ones(LAYERS + 1, dtype=torch.float64))
    assert torch.allclose(there.candidates[method], -back.candidates[method], atol=EXACT)
    assert there.candidates[method].dtype == torch.float64


def test_the_mean_direction_is_the_normalised_difference_of_means():
    expected = normalised(rows(1, 0.7).double().mean(0) - rows(2).double().mean(0))
    assert torch.allclose(estimated().candidates["mean"], expected, atol=EXACT)


def test_no_difference_gives_no_direction_and_no_nan():
    found = estimated(HARMLESS, HARMLESS, methods=("mean", "median", "variance", "hybrid"), orthogonalise=True)
    for rows_of in found.candidates.values():
        assert torch.equal(rows_of, torch.zeros_like(rows_of))
    assert torch.equal(found.at(1, Choice("hybrid", 0.5, 1.5)), torch.zeros(D, dtype=torch.float64))


def test_mean_and_median_agree_for_symmetric_data():
    half = rows(5, n=8)
    centre = torch.randn(LAYERS + 1, D, generator=torch.Generator().manual_seed(9))
    symmetric = torch.cat([centre + half, centre - half, centre[None]])
    other = torch.cat([half, -half, torch.zeros(1, LAYERS + 1, D)])
    found = estimated(residuals(symmetric), residuals(other), methods=("mean", "median"))
    assert torch.allclose(found.candidates["mean"], found.candidates["median"], atol=1e-6)


def test_the_median_is_the_lower_one_of_an_even_number():
    kept = torch.tensor([[[1.0]], [[4.0]], [[2.0]], [[9.0]]])
    assert float(residuals(kept).median()) == 2.0


def test_the_variance_direction_weighs_a_noisy_coordinate_down():
    bad, good = torch.zeros(64, 2, D), torch.zeros(64, 2, D)
    noise = torch.linspace(-20, 20, 64)
    bad[:, :, 0], good[:, :, 0] = 1 + noise[:, None], noise[:, None]
    bad[:, :, 1], good[:, :, 1] = 1 + 0.05 * noise[:, None], 0.05 * noise[:, None]
    found = estimated(residuals(bad), residuals(good), methods=("mean", "variance")).candidates
    assert torch.allclose(found["mean"][1, 0], found["mean"][1, 1])
    ratio = float(found["variance"][1, 0] / found["variance"][1, 1])
    assert ratio == pytest.approx(0.05, rel=1e-3)


def test_the_floor_keeps_the_variance_direction_finite_where_nothing_varies():
    bad, good = torch.zeros(5, 2, D), torch.zeros(5, 2, D)
    bad[..., 3] = 1.0
    found = estimated(residuals(bad), residuals(good), methods=("mean", "variance")).candidates["variance"]
    assert torch.allclose(found[1], torch.eye(D, dtype=torch.float64)[3])


def test_the_pooled_variance_is_the_mean_of_the_populations():
    floor = 0.25
    found = estimated(methods=("mean", "variance"), variance_floor=floor).candidates["variance"]
    b, g = rows(1, 0.7).double(), rows(2).double()
    pooled = (b.var(0, correction=0) + g.var(0, correction=0)) / 2 + floor
    assert torch.allclose(found, normalised((b.mean(0) - g.mean(0)) / pooled.sqrt()), atol=1e-10)


def test_a_hybrid_is_a_blend_whose_ends_are_mean_and_variance():
    found = estimated(methods=("mean", "variance", "hybrid"))
    mean, variance = found.candidates["mean"], found.candidates["variance"]
    assert torch.allclose(found.combined("hybrid", 0.0), mean, atol=EXACT)
    assert torch.allclose(found.combined("hybrid", 1.0), variance, atol=EXACT)
    assert torch.allclose(found.combined("hybrid", 0.3), normalised(0.7 * mean + 0.3 * variance), atol=EXACT)


# Interpolation


def test_an_integer_index_is_the_direction_of_that_block_and_others_lie_between():
    stored = normalised(rows(3)[0].double())
    for index in range(LAYERS):
        assert torch.allclose(interpolated(stored, float(index)), stored[index + 1], atol=EXACT)
    between = interpolated(stored, 1.25)
    assert torch.allclose(between, normalised(0.75 * stored[2] + 0.25 * stored[3]), atol=EXACT)
    assert float(between.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("layers", [2, 3, 5, 32, 80])
def test_the_highest_index_that_a_search_draws_is_one_that_the_layers_have(layers):
    stored = normalised(torch.randn(layers + 1, 6, dtype=torch.float64))
    for share in (0.4, 0.9, 1.0):
        assert torch.isfinite(interpolated(stored, share * (layers - 1))).all()
    for outside in (-1.5, layers - 0.5):
        with pytest.raises(ValueError, match="lies outside"):
            interpolated(stored, outside)


def test_per_layer_each_block_has_its_own_direction_and_globally_all_have_the_same():
    found = estimated()
    for layer in range(LAYERS):
        assert torch.equal(found.at(layer, Choice()), found.candidates["mean"][layer + 1])
        assert torch.equal(found.at(layer, Choice(index=1.5)), interpolated(found.candidates["mean"], 1.5))


# What is kept out


@pytest.mark.parametrize("svd", ["exact", "randomised"])
@pytest.mark.parametrize("method", ["mean", "median", "variance", "hybrid"])
@pytest.mark.parametrize("index", [None, 0.7, 2.0])
def test_the_benign_subspace_and_the_benign_mean_are_out_of_every_edit(svd, method, index):
    """After the whole pipeline: estimator, blend, interpolation between layers."""
    found = estimated(
        methods=("mean", "median", "variance", "hybrid"), orthogonalise=True, benign_rank=3, benign_svd=svd
    )
    for layer in range(LAYERS):
        vector = found.at(layer, Choice(method, 0.4, index))
        subspace = benign_subspace(HARMLESS.layer(layer + 1), 3, svd, layer + 1)
        assert len(found.protected[layer + 1]) == 4
        assert torch.allclose(subspace @ subspace.T, torch.eye(3, dtype=torch.float64), atol=EXACT)
        assert float((subspace @ vector).abs().max()) <= EXACT
        assert float((HARMLESS.mean[layer + 1] @ vector).abs() / HARMLESS.mean[layer + 1].norm()) <= EXACT
        assert float(vector.norm()) == pytest.approx(1.0)


def test_what_iconoclast_publishes_puts_a_part_of_the_benign_subspace_back():
    published = estimated(orthogonalise=True, benign_rank=3, order="as_published", protect="measured")
    joint = estimated(orthogonalise=True, benign_rank=3)
    leaks = []
    for layer in range(1, LAYERS + 1):
        subspace = benign_subspace(HARMLESS.layer(layer), 3)
        leaks.append(float((subspace @ published.at(layer - 1, Choice())).norm()))
        assert float((subspace @ joint.at(layer - 1, Choice())).norm()) <= EXACT
        first = without(normalised(HARMFUL.mean - HARMLESS.mean)[layer], subspace)
        expected = without(first, normalised(HARMLESS.mean)[layer][None])
        assert torch.allclose(published.candidates["mean"][layer], expected, atol=EXACT)
    assert min(leaks) > 1e-3


def test_one_direction_for_all_layers_keeps_off_the_edited_layer_only_where_that_is_asked_for():
    edited = estimated(orthogonalise=True, benign_rank=3)
    measured = estimated(orthogonalise=True, benign_rank=3, protect="measured")
    layer, choice = 3, Choice(index=0.0)
    subspace = benign_subspace(HARMLESS.layer(layer + 1), 3)
    assert float((subspace @ edited.at(layer, choice)).norm()) <= EXACT
    assert float((subspace @ measured.at(layer, choice)).norm()) > 1e-2
    assert torch.equal(measured.at(layer, choice), measured.candidates["mean"][1])


def test_projected_directions_are_heretics():
    """d - (d·g)g at length 1, where only the mean is kept out."""
    found = estimated(orthogonalise=True).candidates["mean"]
    d, g = normalised(HARMFUL.mean - HARMLESS.mean), normalised(HARMLESS.mean)
    assert torch.allclose(found, normalised(d - (d * g).sum(1, keepdim=True) * g), atol=EXACT)
    assert float((found * g).sum(1).abs().max()) <= EXACT


def test_the_fixture_of_iconoclasts_own_test():
    """Harmless residuals along e1 alone; of (1, 1, 0) only e2 is left."""
    good = torch.zeros(4, 2, 3)
    good[:, :, 0] = torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None]
    bad = good + torch.tensor([1.0, 1.0, 0.0])
    for svd in ("exact", "randomised"):
        found = estimated(residuals(bad), residuals(good), benign_rank=1, benign_svd=svd)
        assert torch.allclose(found.at(0, Choice()), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-5)


def test_no_rank_and_no_basis_leave_the_very_same_tensor():
    vector = unit(4, D)
    assert without(vector, vector.new_empty(0, D)) is vector
    assert all(len(basis) == 0 for basis in estimated().protected)


@pytest.mark.parametrize(
    ("n", "d", "rank", "expected"), [(5, D, 9, 4), (30, 3, 9, 3), (30, D, 7, 7), (1, D, 4, 0), (30, D, 0, 0)]
)
@pytest.mark.parametrize("svd", ["exact", "randomised"])
def test_the_rank_is_at_most_what_prompts_and_width_allow(n, d, rank, expected, svd):
    basis = benign_subspace(
        torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), rank, svd
    )
    assert basis.shape == (expected, d)
    assert torch.allclose(basis @ basis.T, torch.eye(expected, dtype=torch.float64), atol=EXACT)


@pytest.mark.parametrize("svd", ["exact", "randomised"])
def test_data_of_low_rank_gives_no_more_directions_than_it_has(svd):
    generator = torch.Generator().manual_seed(2)
    low = torch.randn(N, 2, generator=generator, dtype=torch.float64) @ torch.randn(
        2, D, generator=generator, dtype=torch.float64
    )
    assert benign_subspace(low + 3.0, 6, svd).shape == (2, D)


@pytest.mark.parametrize("svd", ["exact", "randomised"])
@pytest.mark.parametrize("noise", [0.0, 1e-13])
def test_a_layer_at_which_all_residuals_are_the_same_protects_nothing_and_breaks_nothing(svd, noise):
    """The embedding of the template's last token, layer 0: ICONOCLAST's stack of bases breaks there."""
    bad, good = rows(1, 0.7), rows(2)
    bad[:, 0] = good[:, 0] = 1.5
    constant = good[:, 0].double() + noise * torch.randn(N, D, dtype=torch.float64)
    assert len(benign_subspace(constant, 3, svd)) == 0
    found = estimated(residuals(bad), residuals(good), benign_rank=3, benign_svd=svd)
    assert [len(basis) for basis in found.protected] == [0] + [3] * LAYERS
    assert torch.equal(found.candidates["mean"][0], torch.zeros(D, dtype=torch.float64))


def test_the_randomised_decomposition_spans_the_exact_one_and_is_the_same_again():
    """Where the spectrum has a gap; angles between the spans by singular values of their product."""
    data = rows(2)[:, 2].double() * torch.tensor([50.0] * 4 + [0.1] * (D - 4), dtype=torch.float64)
    exact, drawn = benign_subspace(data, 4), benign_subspace(data, 4, "randomised", 7)
    assert torch.linalg.svdvals(exact @ drawn.T).min() > 1 - 1e-6
    torch.manual_seed(123)
    assert torch.equal(drawn, benign_subspace(data, 4, "randomised", 7))


def test_the_benign_subspace_is_that_of_the_centred_covariance_and_so_does_not_hold_the_mean():
    data = HARMLESS.layer(2)
    _values, vectors = torch.linalg.eigh(torch.cov(data.T, correction=0))
    top = vectors[:, -3:].T
    assert torch.linalg.svdvals(benign_subspace(data, 3) @ top.T).min() > 1 - 1e-9
    far = data + 100.0  # a large mean is no direction of variance
    assert torch.linalg.svdvals(benign_subspace(far, 3) @ top.T).min() > 1 - 1e-9


@pytest.mark.parametrize("dampening", [0.0, 0.25, 0.5, 1.0])
def test_a_dampened_projection_leaves_the_rest_in_proportion(dampening):
    q = torch.linalg.qr(torch.randn(D, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q.T
    vector = unit(8, D)
    found = without(vector, q, dampening)
    across = vector - q.T @ (q @ vector)
    assert torch.allclose(found, normalised(across + (1 - dampening) * (q.T @ (q @ vector))), atol=EXACT)


def test_what_dampening_leaves_is_left_at_the_edited_layers_too():
    whole, half = estimated(benign_rank=3), estimated(benign_rank=3, dampening=0.5)
    subspace = benign_subspace(HARMLESS.layer(2), 3)
    assert float((subspace @ whole.at(1, Choice())).norm()) <= EXACT
    assert float((subspace @ half.at(1, Choice())).norm()) > 1e-3


def test_directions_taken_out_together_are_out_while_one_after_another_they_leak():
    first, second, vector = unit(1, D), unit(2, D), unit(3, D)
    basis = joint_basis(first[None], second[None])
    both = without(vector, basis)
    in_turn = without(without(vector, first[None]), second[None])
    assert float((torch.stack([first, second]) @ both).abs().max()) <= EXACT
    assert float((first @ in_turn).abs()) > 1e-3


def test_a_joint_basis_spans_all_rows_even_where_some_depend_on_others():
    e = torch.eye(4, dtype=torch.float64)
    for bases in ((e[:1], e[:1], e[1:2]), (e[:2], (e[0] + e[1])[None], e[2:3]), (e[:1], 0 * e[:1], e[3:])):
        basis = joint_basis(*bases)
        given = torch.cat(bases)
        assert torch.allclose(given @ basis.T @ basis, given, atol=EXACT)
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=EXACT)


def test_where_everything_is_protected_no_direction_is_left():
    found = estimated(orthogonalise=True, benign_rank=D)
    for layer in range(LAYERS):
        for choice in (Choice(), Choice(index=1.3)):
            assert float(found.at(layer, choice).norm()) < 1e-3


def test_cosines_are_per_layer():
    first, second = rows(3)[0].double(), rows(4)[0].double()
    expected = torch.nn.functional.cosine_similarity(first, second, dim=1)
    assert cosines(first, second) == pytest.approx(expected.tolist())
