"""Pieces of matrices, and the main directions of ΔW found from them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from abliteration_samples import family_model
from delta_samples import matrix_with, model_of, spectrum

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.preservation.preservation import Line, Preservation, protected_weights
from bulwark.training import engine as engines
from bulwark.training.displacement import Displacement, Piece, main_subspaces, norms_of
from bulwark.training.shards import Shard

CPU = torch.device("cpu")
ROWS, COLUMNS = 11, 7


@pytest.fixture(autouse=True)
def processes():
    engines.start_processes()


def displacement(matrix: torch.Tensor, side: str = "output", name: str = "weight") -> Displacement:
    parameter = torch.nn.Parameter(torch.empty(matrix.shape))
    return Displacement(name, parameter, side, matrix.flatten().clone(), 0, replicated=False)


def pieces_of(matrix: torch.Tensor, count: int) -> list[Piece]:
    """Cut where ZeRO-3 would cut: in equal shares, without regard to rows."""
    share = -(-matrix.numel() // count)
    flat = matrix.flatten()
    return [Piece(flat[start : start + share].clone(), start, matrix.shape) for start in range(0, flat.numel(), share)]


def together(pieces: list[Piece]) -> torch.Tensor:
    return torch.cat([piece.values for piece in pieces]).view(pieces[0].rows, pieces[0].columns)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12, 40])
def test_products_of_pieces_add_up(count):
    matrix, right, left = torch.randn(ROWS, COLUMNS), torch.randn(COLUMNS, 3), torch.randn(ROWS, 3)
    pieces = pieces_of(matrix, count)
    torch.testing.assert_close(sum(piece.times(right) for piece in pieces), matrix @ right)
    torch.testing.assert_close(sum(piece.transposed_times(left) for piece in pieces), matrix.T @ left)
    for piece in pieces:
        piece.subtract(left, right)
    torch.testing.assert_close(together(pieces), matrix - left @ right.T)


def test_an_empty_piece_has_a_share_of_nought():
    piece = Piece(torch.empty(0), 0, (ROWS, COLUMNS))
    assert not piece.times(torch.ones(COLUMNS, 2)).any()
    piece.subtract(torch.ones(ROWS, 2), torch.ones(COLUMNS, 2))


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_projection_is_idempotent_and_the_same_in_four_shards(side):
    matrix = torch.randn(ROWS, COLUMNS)
    basis = torch.linalg.qr(torch.randn(ROWS if side == "output" else COLUMNS, 3)).Q
    expected = matrix - (basis @ basis.T @ matrix if side == "output" else matrix @ basis @ basis.T)
    for count in (1, 4):
        pieces = pieces_of(matrix, count)
        for _ in range(2):
            coordinates = sum(piece.along(basis, side) for piece in pieces)
            for piece in pieces:
                piece.remove(basis, side, coordinates)
            torch.testing.assert_close(together(pieces), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("name", ["1/i", "1/sqrt(i)", "exp"])
def test_the_basis_captures_nearly_what_is_possible(name, side):
    values = spectrum(name)
    matrix = matrix_with(values, 96, 80)
    best = float(values[:8].square().sum() / values.square().sum())
    shares = {}
    for qr_slice in (False, True):
        [(basis, coordinates)] = main_subspaces(
            [displacement(matrix, side)], CPU, rank=8, oversample=4, power_iterations=2, qr_slice=qr_slice
        )
        torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(coordinates, (matrix.T if side == "output" else matrix) @ basis, atol=1e-5, rtol=0)
        shares[qr_slice] = float(coordinates.square().sum() / matrix.square().sum())
    assert 0.95 * best <= shares[False] <= best + 1e-5
    assert shares[True] < 0.95 * best  # the published slice of the sketch


def test_with_enough_iterations_it_is_the_singular_value_decomposition():
    matrix = matrix_with(spectrum("1/i", 32), 40, 64)
    [(basis, coordinates)] = main_subspaces([displacement(matrix)], CPU, rank=3, oversample=8, power_iterations=30)
    left, values, _ = torch.linalg.svd(matrix)
    torch.testing.assert_close(coordinates.norm(dim=0), values[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close((basis.T @ left[:, :3]).abs(), torch.eye(3), atol=1e-4, rtol=0)


def test_directions_beyond_the_rank_are_empty():
    matrix = torch.outer(torch.randn(ROWS), torch.randn(COLUMNS))
    [(basis, coordinates)] = main_subspaces([displacement(matrix)], CPU, rank=3, oversample=2, power_iterations=2)
    assert not basis[:, 1:].any()
    assert not coordinates[:, 1:].any()
    torch.testing.assert_close(basis @ coordinates.T, matrix)
    [norm] = norms_of([displacement(matrix)], CPU)
    assert norm == pytest.approx(float(matrix.norm()))


def test_the_sketch_depends_on_the_name_only():
    matrix = torch.randn(ROWS, COLUMNS)
    chosen = {"rank": 2, "oversample": 0, "power_iterations": 0, "qr_slice": True}
    one, again, other = (
        main_subspaces([displacement(matrix, name=name)], CPU, **chosen)[0][0] for name in ("a", "a", "b")
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one.abs(), other.abs())


def test_a_line_through_a_shard():
    unit = torch.nn.functional.normalize(torch.randn(ROWS * COLUMNS), dim=0)
    parameter = torch.nn.Parameter(torch.empty(ROWS, COLUMNS))
    line = Line("weight", parameter, "output", Shard(unit[10:30], 10, False), torch.ones(1, 1))
    values = torch.randn(ROWS * COLUMNS)
    for held in (Shard(values[10:30], 10, False), Shard(values, 0, True)):
        assert float(line.along(held)) == pytest.approx(float(values[10:30] @ unit[10:30]), abs=1e-5)
    own = Shard(values[10:30].clone(), 10, False)
    line.remove(own, torch.tensor([[2.0]]))
    torch.testing.assert_close(own.values, values[10:30] - 2 * unit[10:30])


def test_what_is_protected():
    model = model_of()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    core = {names[id(parameter)]: side for parameter, side in protected_weights(model)}
    assert set(core.values()) == {"output"}
    assert sorted({name.rsplit(".", 2)[1] for name in core}) == ["down_proj", "o_proj"]
    assert len(core) == 2 * 3
    everything = {names[id(parameter)]: side for parameter, side in protected_weights(model, "all_linear", (2,))}
    assert all(".2." not in name and ".0." not in name for name in everything)
    sides = {name.rsplit(".", 2)[1]: side for name, side in everything.items()}
    assert sides == {name: "input" for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")} | {
        name: "output" for name in ("o_proj", "down_proj")
    }
    neox = model_of(family="gpt_neox")
    assert len(protected_weights(neox)) == 2 * 3
    with pytest.raises(ConfigurationError, match=r"layers: \[4\] are no blocks of a model with 3"):
        protected_weights(model, layers=(1, 4))
    model.requires_grad_(False)
    with pytest.raises(BulwarkError, match="nothing to preserve"):
        protected_weights(model)


def test_experts_in_one_tensor_are_told_and_not_left_out_silently():
    model = family_model("qwen3_moe")
    with pytest.raises(BulwarkError, match=r"Block 1 has experts in one tensor \(.*experts.*\).*allow_partial: true"):
        protected_weights(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = [names[id(parameter)] for parameter, _ in protected_weights(model, allow_partial=True)]
    assert kept
    assert all("o_proj" in name for name in kept)


def test_what_erodes_and_what_does_not():
    """One-sided: only movements against ΔW along a direction are removed; the other side stays as it is."""
    keeper = SimpleNamespace(settings=SimpleNamespace(remove="eroding", strength=1.0))
    delta = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    movement = torch.tensor([[-1.0, 3.0], [5.0, 1.0]])  # against the first direction, along the second
    surplus, eroding = Preservation._surplus(keeper, movement, delta)
    assert eroding.tolist() == [1.0, 0.0]
    assert torch.equal(surplus, torch.tensor([[-1.0, 0.0], [5.0, 0.0]]))
    keeper.settings = SimpleNamespace(remove="all", strength=0.5)
    assert torch.equal(Preservation._surplus(keeper, movement, delta)[0], movement / 2)
