"""The edit of one weight in its three forms, in float64."""

from __future__ import annotations

import pytest
import torch
from abliteration_samples import unit
from torch import Tensor

from bulwark.abliteration.edit.edits import Form, adapter, edited_weight, form
from bulwark.abliteration.measure.directions import orthonormal

OUT, IN = 40, 28
STRENGTHS = [0.0, 0.5, 1.0, 1.5, 2.0, -0.25]
KINDS = ["none", "pre", "full", "columns"]
EXACT = 1e-10


def weight(seed: int = 0, spread: float = 0.5, shape: tuple[int, int] = (OUT, IN)) -> Tensor:
    """Rows of log-normal norms."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn * (spread * torch.randn(shape[0], 1, generator=generator, dtype=torch.float64)).exp()


def edit(strength: float, kind: str, matrix: Tensor, vector: Tensor | None = None) -> Form:
    vector = unit(5, matrix.shape[0]) if vector is None else vector
    return form(torch.atleast_2d(vector)[None], torch.tensor([strength], dtype=torch.float64), kind, matrix)


def edited(strength: float, kind: str = "none", matrix: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
    matrix = weight() if matrix is None else matrix
    return edited_weight(matrix, edit(strength, kind, matrix, vector))


V = unit(5, OUT)
W = weight()
NORMS = W.norm(dim=1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_none_leaves_a_share_of_the_component_and_nothing_else_changes(strength):
    new = edited(strength)
    assert torch.allclose(V @ new, (1 - strength) * (V @ W), atol=EXACT)
    across = torch.eye(OUT, dtype=torch.float64) - torch.outer(V, V)
    assert torch.allclose(across @ new, across @ W, atol=EXACT)
    assert float((new - W).norm()) == pytest.approx(abs(strength) * float((V @ W).norm()), abs=EXACT)
    assert torch.linalg.matrix_rank(new - W) == (strength != 0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_strength_is_no_edit(kind):
    assert torch.allclose(edited(0.0, kind), W, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_the_sign_of_the_direction_does_not_matter(kind, strength):
    assert torch.allclose(edited(strength, kind), edited(strength, kind, vector=-V), atol=EXACT)


@pytest.mark.parametrize("kind", ["none", "pre", "columns"])
def test_a_whole_ablation_done_again_changes_nothing(kind):
    once = edited(1.0, kind)
    if kind == "pre":  # the norms of the rows, by which it is defined, have changed
        norms = NORMS
        again = once - torch.outer(norms * V, (V / norms) @ once)
    else:
        again = edited(1.0, kind, once)
    assert torch.allclose(once, again, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_orthogonal_to_the_direction_keeps_its_part_of_the_output_with_none_alone(kind):
    u = torch.linalg.qr(torch.stack([V, unit(6, OUT), unit(7, OUT)]).T).Q.T[1:]
    assert float((u @ V).abs().max()) < EXACT
    change = float((u @ (edited(1.0, kind) - W)).norm() / (edited(1.0, kind) - W).norm())
    assert change < EXACT if kind == "none" else change > 1e-3


@pytest.mark.parametrize("strength", STRENGTHS)
def test_pre_ablates_the_direction_divided_by_the_norms(strength):
    new, other = edited(strength, "pre"), V / NORMS
    assert torch.allclose(other @ new, (1 - strength) * (other @ W), atol=EXACT)
    assert torch.linalg.matrix_rank(new - W) == (strength != 0)
    if strength == 1.0:
        assert float((V @ new).norm() / (V @ W).norm()) > 0.1


@pytest.mark.parametrize("kind", ["pre", "full"])
def test_where_all_rows_are_as_long_pre_is_none_and_full_only_rescales_it(kind):
    even = 2.5 * W / NORMS[:, None]
    plain = edited(0.8, "none", even)
    if kind == "full":
        plain = plain / plain.norm(dim=1, keepdim=True) * 2.5
    assert torch.allclose(edited(0.8, kind, even), plain, atol=EXACT)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_full_is_heretics_rows_at_their_old_length(strength):
    hat = W / NORMS[:, None]
    direct = hat - strength * torch.outer(V, V @ hat)
    direct = NORMS[:, None] * direct / direct.norm(dim=1, keepdim=True)
    new = edited(strength, "full")
    assert torch.allclose(new, direct, rtol=1e-9, atol=EXACT)
    assert torch.allclose(new.norm(dim=1), NORMS, rtol=1e-9)
    if strength == 1.0:
        assert float((V @ new).norm() / (V @ W).norm()) > 0.1


@pytest.mark.parametrize("strength", STRENGTHS)
def test_columns_keep_their_length_and_lose_the_direction_at_full_strength(strength):
    new = edited(strength, "columns")
    assert torch.allclose(new.norm(dim=0), W.norm(dim=0), rtol=1e-9)
    plain = edited(strength)
    assert torch.allclose(new, plain / plain.norm(dim=0) * W.norm(dim=0), atol=EXACT)
    if strength == 1.0:
        assert float((V @ new).norm()) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_columns_of_zeros_stay_zeros(kind):
    matrix = W.clone()
    matrix[3], matrix[:, 4] = 0.0, 0.0
    new = edited(1.0, kind, matrix)
    assert torch.isfinite(new).all()
    assert float(new[:, 4].abs().max()) == 0
    if kind in ("pre", "full"):
        assert float(new[3].abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_the_direction_itself_does_not_give_nan(kind):
    """W = e₀⊗x and v = e₀: nothing is left of the row, whose length cannot be kept."""
    matrix = torch.zeros(OUT, IN, dtype=torch.float64)
    matrix[0, :] = 2.0
    vector = torch.zeros(OUT, dtype=torch.float64)
    vector[0] = 1.0
    assert torch.isfinite(edited(1.0, kind, matrix, vector)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_the_output_form_is_the_weight_form(kind, strength):
    """On outputs without bias, of several tokens."""
    change = edit(strength, kind, W)
    x = torch.randn(3, 7, IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = x if change.s is None else x * change.s[0]
    through = (edited_weight(W, change) @ x[..., None])[..., 0]
    parts = (change.a, change.b, change.c)
    rows = Form(*(None if part is None else part.expand(3, *part.shape[1:]).float() for part in parts))
    assert torch.allclose(rows.on(inputs @ W.T).double(), through, rtol=1e-5, atol=1e-4)  # computed in float32


def test_several_edits_of_one_module_are_the_single_ones():
    vectors = torch.stack([unit(seed, OUT) for seed in (1, 2, 3)])[:, None]
    strengths = torch.tensor([0.4, 0.0, 1.3], dtype=torch.float64)
    for kind in KINDS:
        many = form(vectors, strengths, kind, W)
        for number in range(3):
            alone = form(vectors[number : number + 1], strengths[number : number + 1], kind, W)
            picked = many[torch.tensor([number])]
            assert torch.allclose(edited_weight(W, picked), edited_weight(W, alone), atol=EXACT)


def test_a_normalization_that_looks_at_the_weight_needs_it():
    with pytest.raises(ValueError, match="needs the weight"):
        form(V[None, None], torch.ones(1), "full")


@pytest.mark.parametrize("kind", ["none", "pre"])
def test_an_adapter_of_rank_one_is_the_edit_exactly(kind):
    change = edit(0.9, kind, W)
    a, b = adapter(W, change, rank=5)
    assert a.shape == (1, IN)
    assert b.shape == (OUT, 1)
    assert torch.allclose(W + b @ a, edited_weight(W, change), atol=EXACT)


@pytest.mark.parametrize("kind", ["full", "columns"])
def test_an_adapter_comes_nearer_with_its_rank_and_is_the_best_of_its_rank(kind):
    matrix = weight(1, shape=(60, 48))
    change = edit(1.0, kind, matrix)
    delta = edited_weight(matrix, change) - matrix
    values = torch.linalg.svdvals(delta)
    errors = []
    for rank in (1, 2, 3, 6, 12, 48):
        a, b = adapter(matrix, change, rank)
        assert a.shape == (rank, 48)
        assert b.shape == (60, rank)
        errors.append(float((b @ a - delta).norm()))
        assert errors[-1] <= 1.001 * float(values[rank:].norm()) + EXACT
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


def test_an_adapter_of_rank_three_captures_nearly_all_of_full():
    matrix = weight(1, shape=(96, 80))
    change = edit(1.0, "full", matrix)
    delta = edited_weight(matrix, change) - matrix
    a, b = adapter(matrix, change, 3)
    assert float((b @ a - delta).norm() ** 2 / delta.norm() ** 2) < 0.05


def test_an_adapter_is_the_same_again_whatever_was_drawn_before():
    matrix = weight(1, shape=(96, 80))
    change = edit(1.0, "full", matrix)
    torch.manual_seed(1)
    first = adapter(matrix, change, 3, seed=4)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = adapter(matrix, change, 3, seed=4)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_several_directions_are_gone_together_only_where_they_are_orthogonal():
    first, second = unit(1, OUT), unit(2, OUT)
    in_turn = edited(1.0, matrix=edited(1.0, vector=first), vector=second)
    assert float((first @ in_turn).norm()) > 1e-2
    across = second - first * (first @ second)
    jointly = edited(1.0, matrix=edited(1.0, vector=first), vector=across / across.norm())
    assert float((torch.stack([first, second]) @ jointly).norm()) < EXACT
    assert torch.allclose(edited(1.0, vector=BASIS[:2]), jointly, atol=EXACT)


# Several directions at once: the rows of an orthonormal basis Q

BASIS = orthonormal(torch.stack([unit(seed, OUT) for seed in (1, 2, 3)]))


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_is_taken_out_as_by_hand(kind, strength):
    across = strength * BASIS.T @ BASIS
    hat = W / NORMS[:, None]
    by_hand = {
        "none": W - across @ W,
        "pre": W - NORMS[:, None] * (across @ hat),
        "full": NORMS[:, None] * torch.nn.functional.normalize(hat - across @ hat, dim=1),
        "columns": torch.nn.functional.normalize(W - across @ W, dim=0) * W.norm(dim=0),
    }
    assert torch.allclose(edited(strength, kind, vector=BASIS), by_hand[kind], atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_no_basis_of_a_span_is_special_and_rows_of_zeros_are_no_direction(kind):
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    padded = torch.cat([turned @ BASIS, torch.zeros(2, OUT, dtype=torch.float64)])
    assert torch.allclose(edited(1.0, kind, vector=padded), edited(1.0, kind, vector=BASIS), atol=EXACT)


def test_an_adapter_of_a_span_has_its_rank_and_is_exact():
    change = edit(0.9, "none", W, BASIS)
    a, b = adapter(W, change, rank=1)
    assert (a.shape, b.shape) == ((3, IN), (OUT, 3))
    assert torch.allclose(W + b @ a, edited_weight(W, change), atol=EXACT)


def test_rows_that_earlier_ones_span_become_zeros_and_the_first_keep_their_span():
    first, second = unit(1, OUT), unit(2, OUT)
    found = orthonormal(torch.stack([first, 2 * first, second]))
    assert torch.allclose(found @ found.T, torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)), atol=EXACT)
    assert abs(float(found[0] @ first)) == pytest.approx(1)
    rest = second - found[:2].T @ (found[:2] @ second)
    assert float(rest.norm()) < EXACT
