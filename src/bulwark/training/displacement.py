"""What training has done to weights, ΔW = W - W_0, and its main directions, without ever putting a matrix together.

Every rank holds a contiguous piece of each flattened matrix (`training.shards`). Products with thin matrices need only
the piece and one sum over ranks, and those of all matrices share one all-reduce. This is what intervention delta
preservation (Guan et al., arXiv 2609.10142, Sec. 4.1) and its continuation (Sec. 4.2) are made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bulwark.training.shards import local_master, shape_of

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Side = Literal["output", "input"]


class Piece:
    """A contiguous piece of a matrix [rows, columns] that is flattened row by row.

    It consists of at most three blocks: the end of a row, whole rows, and the beginning of a row. values: [n], which
    `subtract` writes to. start: where it begins in the flattened matrix.
    """

    def __init__(self, values: Tensor, start: int, shape: Sequence[int]) -> None:
        self.values, self.start = values, start
        self.rows, self.columns = shape
        self._blocks: list[tuple[Tensor, slice, slice]] = []
        end, at = start + values.numel(), start
        while at < end:
            row, column = divmod(at, self.columns)
            if column or end - at < self.columns:
                height, width = 1, min(self.columns - column, end - at)
            else:
                height, width = (end - at) // self.columns, self.columns
            block = values[at - start : at - start + height * width].view(height, width)
            self._blocks.append((block, slice(row, row + height), slice(column, column + width)))
            at += height * width

    def times(self, right: Tensor) -> Tensor:
        """This piece's share of M·R, [rows, k], for R [columns, k]."""
        product = right.new_zeros(self.rows, right.shape[1])
        for block, rows, columns in self._blocks:
            product[rows] += block @ right[columns]
        return product

    def transposed_times(self, left: Tensor) -> Tensor:
        """This piece's share of Mᵀ·L, [columns, k], for L [rows, k]."""
        product = left.new_zeros(self.columns, left.shape[1])
        for block, rows, columns in self._blocks:
            product[columns] += block.T @ left[rows]
        return product

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """M ← M - L·Rᵀ within the piece, for L [rows, k] and R [columns, k]."""
        for block, rows, columns in self._blocks:
            block.addmm_(left[rows], right[columns].T, alpha=-1.0)

    def along(self, basis: Tensor, side: Side) -> Tensor:
        """This piece's share of the matrix's coordinates, one column per direction of `basis` on its `side`:
        Mᵀ·B [columns, k] for directions of the output space, M·B [rows, k] for those of the input space."""
        return self.transposed_times(basis) if side == "output" else self.times(basis)

    def remove(self, basis: Tensor, side: Side, coordinates: Tensor) -> None:
        """Take `coordinates` along `basis` out of the piece: M ← M - B·Cᵀ, or M - C·Bᵀ."""
        self.subtract(*((basis, coordinates) if side == "output" else (coordinates, basis)))


@dataclass
class Displacement:
    """This rank's piece of a weight as it was, and later of what became of it since.

    name, parameter: of the weight. side: on which of its sides directions are taken. values: [n] fp32 in the host's
    memory. start, replicated: see `training.shards`.
    """

    name: str
    parameter: nn.Parameter
    side: Side
    values: Tensor
    start: int
    replicated: bool

    @property
    def shape(self) -> torch.Size:
        return shape_of(self.parameter)

    def piece(self, device: torch.device) -> Piece:
        return Piece(self.values.to(device), self.start, self.shape)


def snapshot(engine: DeepSpeedEngine, name: str, parameter: nn.Parameter, side: Side) -> Displacement:
    """Keep a copy of this rank's piece of the fp32 master, in the host's memory."""
    shard = local_master(engine, parameter)
    return Displacement(name, parameter, side, shard.values.to("cpu", copy=True), shard.start, shard.replicated)


def become_differences(engine: DeepSpeedEngine, displacements: Sequence[Displacement], rounded: bool = False) -> None:
    """Turn snapshots W_0 into W - W_0, in place.

    rounded: subtract the weights in the dtype that the model computes with, as the authors' code does, in place of the
    fp32 masters. In bfloat16 that loses most of a small displacement.
    """
    for displacement in displacements:
        now = local_master(engine, displacement.parameter).values.cpu()
        if rounded:
            dtype = displacement.parameter.dtype
            now, displacement.values = now.to(dtype).float(), displacement.values.to(dtype).float()
        displacement.values.neg_().add_(now)


def added_up(parts: Sequence[Tensor], replicated: bool, device: torch.device) -> list[Tensor]:
    """The sums over all ranks of tensors that each has a share of, in one all-reduce; all ranks must call it.

    replicated: every rank has the whole already. device: where the ranks meet.
    """
    return list(parts) if replicated else _exchanged(parts, device, torch.distributed.all_reduce)


def same_everywhere(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The main process's tensors on all ranks, in one broadcast; all ranks must call it."""
    return _exchanged(parts, device, partial(torch.distributed.broadcast, src=0))


def norms_of(displacements: Sequence[Displacement], device: torch.device) -> list[float]:
    """‖ΔW‖ of whole matrices, on all ranks, which must all call it."""
    if not displacements:
        return []
    squares = [displacement.values.double().square().sum().to(device) for displacement in displacements]
    return [float(square) ** 0.5 for square in added_up(squares, displacements[0].replicated, device)]


def main_subspaces(
    displacements: Sequence[Displacement],
    device: torch.device,
    *,
    rank: int,
    oversample: int,
    power_iterations: int,
    qr_slice: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """The `rank` main singular directions of every ΔW on its side, the same on all ranks, which must all call it.

    Returns per ΔW the basis, [rows or columns, r] with orthonormal columns in falling order of importance, and the
    coordinates of ΔW along it, [columns or rows, r], whose columns have the singular values as norms. If ΔW has a lower
    rank than r, the last columns of both are 0.

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, alg. 4.4 and 5.1): a Gaussian sketch of rank +
    oversample columns, power iterations with an orthonormalisation at each half, then the SVD of what is left, which is
    small. The sketch of a weight depends on its name only. Costs 2 + 2·power_iterations all-reduces for all matrices.

    qr_slice: the authors' code: the first `rank` columns of the QR decomposition of the sketch. That is a random part
    of the range, not the main directions: oversampling has no effect on it.
    """
    if not displacements:
        return []
    replicated = displacements[0].replicated

    def products(thin: Sequence[Tensor], across: bool) -> list[Tensor]:
        """ΔW along `thin` on the side of each displacement, or (`across`) on the other side."""
        shares = []
        for displacement, matrix in zip(displacements, thin, strict=True):
            side = _other(displacement.side) if across else displacement.side
            shares.append(displacement.piece(device).along(matrix, side))
        return added_up(shares, replicated, device)

    width = rank if qr_slice else rank + oversample
    sketches = []
    for moved in displacements:
        across = moved.shape[1 if moved.side == "output" else 0]
        sketches.append(_gaussian(moved.name, across, min(rank + oversample, *moved.shape), device))
    bases = [torch.linalg.qr(product).Q for product in products(sketches, across=True)]
    for _ in range(0 if qr_slice else power_iterations):
        others = [torch.linalg.qr(product).Q for product in products(bases, across=False)]
        bases = [torch.linalg.qr(product).Q for product in products(others, across=True)]
    bases = [basis[:, :width] for basis in bases]
    subspaces = []
    for basis, coordinates in zip(bases, products(bases, across=False), strict=True):
        if not qr_slice:
            _, values, directions = torch.linalg.svd(coordinates, full_matrices=False)
            # Directions beyond the rank of ΔW are arbitrary; what they carry is rounding.
            carrying = values > values[0] * max(coordinates.shape) ** 0.5 * torch.finfo(values.dtype).eps
            turn = (directions.T * carrying)[:, :rank]
            basis, coordinates = basis @ turn, coordinates @ turn
        subspaces.append((basis, coordinates))
    flat = same_everywhere([part for pair in subspaces for part in pair], device)
    return list(zip(flat[::2], flat[1::2], strict=True))


def _exchanged(parts: Sequence[Tensor], device: torch.device, exchange: Callable[[Tensor], Any]) -> list[Tensor]:
    """The tensors after an operation of all ranks on them, in one piece."""
    if torch.distributed.get_world_size() == 1 or not parts:
        return list(parts)
    bucket = torch.cat([part.reshape(-1) for part in parts]).to(device)
    exchange(bucket)
    pieces = bucket.split([part.numel() for part in parts])
    return [piece.view_as(part).to(part.device) for piece, part in zip(pieces, parts, strict=True)]


def _gaussian(name: str, rows: int, columns: int, device: torch.device) -> Tensor:
    """A random matrix that is the same for a name on every rank and machine."""
    seed = int(hashlib.sha1(name.encode()).hexdigest()[:8], 16)  # as in the authors' code
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device)


def _other(side: Side) -> Side:
    return "input" if side == "output" else "output"
