"""Each loss against a computation by hand in float64, and against the numbers that are published or can be derived."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bulwark.unlearning import losses

LLAMA_3 = 128_256  # tokens


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_is_that_of_the_definition():
    logits = drawn(4, 7)
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses.entropy(logits).numpy(), -(p * np.log(p)).sum(axis=1), atol=1e-6)


def test_entropy_of_uniform_logits_is_the_logarithm_of_the_vocabulary():
    assert losses.entropy(torch.full((LLAMA_3,), 3.0)).item() == pytest.approx(11.76178, abs=1e-5)
    assert losses.entropy(torch.full((LLAMA_3,), 3.0, dtype=torch.bfloat16)).item() == pytest.approx(11.76178, abs=1e-5)


def test_log_one_minus_is_exact_where_the_plain_formula_is_not():
    logits = torch.tensor([[30.0, 0.0, 0.0], [-30.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    found = losses.log_one_minus(logits, torch.zeros(3, dtype=torch.long))
    e = math.exp
    expected = [
        math.log(2 / (e(30) + 2)),
        math.log1p(-e(-30) / (e(-30) + 2)),
        math.log(1 - e(1) / (e(1) + e(2) + e(3))),
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_log_one_minus_has_finite_gradients_at_certainty():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    losses.log_one_minus(logits, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.5, 0.5]]))


def test_min_posterior_leaves_out_what_is_forgotten():
    logits = torch.zeros(3, 5, requires_grad=True)
    with torch.no_grad():
        logits[:, 0] = torch.tensor([2.0, -13.5, -13.7])  # log p = -14.89 and -15.09 in the last two
    values = losses.min_posterior(logits, torch.zeros(3, dtype=torch.long), threshold=-15.0)
    p = [math.exp(z) / (math.exp(z) + 4) for z in (2.0, -13.5)]
    torch.testing.assert_close(
        values.detach(), torch.tensor([-math.log1p(-p[0]), -math.log1p(-p[1]), 0.0]), atol=1e-7, rtol=1e-5
    )
    values.sum().backward()
    assert logits.grad[1].any()
    assert not logits.grad[2].any()


def test_soft_cross_entropy_is_the_divergence_and_the_entropy_of_the_reference():
    now, then = drawn(3, 6), drawn(3, 6, seed=1)
    p, q = (torch.softmax(logits.double(), dim=-1) for logits in (then, now))
    expected = (p * (p / q).log()).sum(dim=-1) - (p * p.log()).sum(dim=-1)
    torch.testing.assert_close(losses.soft_cross_entropy(now, then).double(), expected, atol=1e-6, rtol=0)


def test_the_mean_by_example_is_one_of_its_own_targets():
    logits, targets = drawn(5, 6), torch.tensor([0, 1, 2, 3, 4])
    log_p = torch.log_softmax(logits.double(), dim=-1)
    each = [-log_p[place, target].item() for place, target in enumerate(targets)]
    each_loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = losses.mean_by_example(each_loss, torch.tensor([0, 0, 0, 2, 2]), count=4)
    expected = [sum(each[:3]) / 3, 0.0, sum(each[3:]) / 2, 0.0]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_random_rows_are_standard_normal_and_independent():
    rows = losses.random_rows(torch.arange(300), 1024, seed=0).double()
    count = rows.numel()
    assert rows.mean().abs() < 4 / math.sqrt(count)
    assert (rows.var() - 1).abs() < 4 * math.sqrt(2 / count)
    assert (rows.pow(4).mean() - 3).abs() < 4 * math.sqrt(96 / count)
    cosines = torch.corrcoef(rows)[~torch.eye(300, dtype=torch.bool)]
    assert cosines.abs().max() < 6 / math.sqrt(1024)
    assert cosines.std().item() == pytest.approx(1 / math.sqrt(1024), rel=0.02)
    columns = torch.corrcoef(rows[:, :200].T)[~torch.eye(200, dtype=torch.bool)]
    assert columns.std().item() == pytest.approx(1 / math.sqrt(300), rel=0.02)


def test_a_random_row_depends_on_seed_and_token_only():
    some, more = torch.tensor([7, 3]), torch.tensor([100, 7, 3, 2])
    torch.testing.assert_close(losses.random_rows(some, 16, 1), losses.random_rows(more, 16, 1)[1:3], atol=0, rtol=0)
    assert not torch.equal(losses.random_rows(some, 16, 1), losses.random_rows(some, 16, 2))
    assert losses.random_rows(some[:0], 16, 1).shape == (0, 16)


def test_misalignment_of_independent_vectors_is_as_derived():
    states, rows = drawn(1, 1000, 4096), losses.random_rows(torch.arange(1000), 4096, seed=3)
    found = losses.misalignment([states], torch.arange(1000), rows).mean().item()
    assert found == pytest.approx(1 - math.sqrt(2 / (math.pi * 4096)), abs=5e-4)
    assert found == pytest.approx(0.9875, abs=5e-4)


def test_misalignment_takes_parallel_and_antiparallel_alike():
    rows = drawn(2, 8)
    assert losses.misalignment([3 * rows.unsqueeze(0), -rows.unsqueeze(0)], torch.arange(2), rows).abs().max() < 1e-6


def test_misalignment_is_a_mean_over_layers_at_the_positions():
    states, rows, positions = [drawn(2, 3, 4), drawn(2, 3, 4, seed=1)], drawn(2, 4, seed=2), torch.tensor([1, 5])
    expected = []
    for number, position in enumerate(positions.tolist()):
        r = rows[number].double().numpy()
        of_layers = []
        for layer in states:
            h = layer.reshape(6, 4)[position].double().numpy()
            of_layers.append(1 - abs(h @ r) / np.linalg.norm(h) / np.linalg.norm(r))
        expected.append(np.mean(of_layers))
    np.testing.assert_allclose(losses.misalignment(states, positions, rows).numpy(), expected, atol=1e-6)


def test_alignment_is_nought_for_what_is_orthogonal_or_opposed():
    then = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    now = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]])
    found = losses.alignment([now, then], [then, then], torch.arange(4))
    expected = torch.tensor([1.0, 0.5, 0.5, (1 + math.sqrt(0.5)) / 2])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("squared", [False, True])
def test_distance_is_plain_or_squared_and_a_mean_over_layers(squared):
    now, then, positions = [drawn(2, 3, 4), drawn(2, 3, 4, seed=1)], [drawn(2, 3, 4, seed=2)] * 2, torch.tensor([0, 4])
    power = 2 if squared else 1
    expected = [
        np.mean(
            [np.linalg.norm((n - t).reshape(6, 4)[p].double().numpy()) ** power for n, t in zip(now, then, strict=True)]
        )
        for p in (0, 4)
    ]
    np.testing.assert_allclose(losses.distance(now, then, positions, squared).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_distance_has_no_gradient_where_nothing_has_changed(squared):
    now = drawn(1, 2, 4).requires_grad_()
    losses.distance([now], [now.detach()], torch.arange(2), squared).sum().backward()
    assert not now.grad.any()


def test_mean_square_is_over_coordinates():
    states, target = drawn(1, 2, 4), drawn(4, seed=1)
    differences = (states[0].double() - target.double()).numpy()
    found = losses.mean_square(states, target, torch.arange(2))
    np.testing.assert_allclose(found.numpy(), (differences**2).sum(axis=1) / 4, rtol=1e-6)
    wider = target.expand(1, 2, 4)
    torch.testing.assert_close(losses.mean_square(states, wider, torch.arange(2)), found)


def test_discrepancy_is_that_of_five_kernels():
    x, y = drawn(3, 4), 0.5 + drawn(2, 4, seed=1)
    both = torch.cat([x, y]).double().numpy()
    squares = np.array([[((a - b) ** 2).sum() for a in both] for b in both])
    bandwidth = squares.sum() / 20  # 5 · 4 pairs of different samples
    kernel = sum(np.exp(-squares / (bandwidth * width)) for width in (0.25, 0.5, 1.0, 2.0, 4.0))
    expected = kernel[:3, :3].mean() + kernel[3:, 3:].mean() - 2 * kernel[:3, 3:].mean()
    assert losses.discrepancy(x, y).item() == pytest.approx(expected, abs=1e-6)
    assert losses.discrepancy(x, x.clone()).item() == pytest.approx(0, abs=1e-6)


def test_no_gradient_goes_through_the_bandwidth():
    x, y = drawn(3, 4).double().requires_grad_(), drawn(3, 4, seed=1).double()
    losses.discrepancy(x, y).backward()
    both = torch.cat([x, y]).detach()
    fixed = torch.cdist(both, both).square().sum() / 30

    def held(z: torch.Tensor) -> torch.Tensor:
        of = lambda a, b: sum(  # noqa: E731
            torch.exp(-torch.cdist(a, b).square() / (fixed * 2.0**i)).mean() for i in range(-2, 3)
        )
        return of(z, z) + of(y, y) - 2 * of(z, y)

    step = 1e-6 * drawn(3, 4, seed=2).double()
    slope = (held(x.detach() + step) - held(x.detach() - step)) / 2
    assert slope.item() == pytest.approx((x.grad * step).sum().item(), rel=1e-4)
