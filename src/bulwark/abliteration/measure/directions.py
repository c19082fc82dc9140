"""Refusal directions: estimated per layer from residuals, orthogonal to what benign prompts use, combined for a trial.

Estimators, with b and g the residuals of harmful and harmless prompts at a layer (docs/abliteration.md,
"Residuals and directions"):

    mean      normalise(mean b - mean g)                                            HERETIC; Arditi et al., Eq. 1
    median    normalise(median b - median g), component by component
    variance  normalise((mean b - mean g) / sqrt((var g + var b)/2 + floor))        an effect size per coordinate
    hybrid    normalise((1 - β)·mean + β·variance)
    principal the top right singular vectors of b - mean g, not centred, so that the first is near "mean"
    som       w - mean g for the neurons w of a self-organising map of b (Piras et al., arXiv 2511.08379), the most
              often hit first

The last two give several directions. They are made orthonormal in their order, so that the first k span what the first
k of them do, and an edit takes out that span.

Protected are the span of the benign subspace U (the top right singular vectors of the centred harmless residuals) and,
for "projected" directions, ĝ, the mean harmless residual: both are projected out *jointly*, by one QR of [U, ĝ],
d ← normalise(d - QQᵀd). ICONOCLAST projects out first U and then ĝ, which puts -(d·ĝ)Uᵀĝ back along U unless ĝ ⟂ U, and
then uses directions of other layers; `order: as_published` and `protect: measured` do the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bulwark.abliteration.measure import som
from bulwark.abliteration.settings import DirectionSettings
from bulwark.models.residuals import Residuals

_LEAST_NORM = 1e-12
_LEAST_SINGULAR_VALUE = 1e-9  # of the largest; below it a direction is rounding
_RANDOMISED_ITERATIONS = 2  # of torch.pca_lowrank, whose default it is


@dataclass(frozen=True)
class Choice:
    """Which direction a trial takes. index: a layer number from 0, possibly between layers; None takes each its own.

    count: how many, of a method that gives several. These have no directions between layers: the nearest layer's count.
    """

    method: str = "mean"
    blend: float = 0.0
    index: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Directions:
    """Unit directions of every estimator, {method: [L+1, hidden]} in float64, and what is protected at each layer.

    Of a method that gives several: [L+1, k, hidden], orthonormal at each layer, with zeros where there are fewer.

    Row l + 1 belongs to block l (from 0): it is measured at that block's output. protected: per row an orthonormal
    basis [r, hidden], r = 0 where nothing is protected. edited: protect at the layer that is edited, too.
    """

    candidates: dict[str, Tensor]
    protected: list[Tensor]
    edited: bool = True

    def at(self, layer: int, choice: Choice) -> Tensor:
        """The unit direction [hidden] with which block `layer` (from 0) is edited; 0 where there is none.

        Of a method that gives several, the orthonormal rows [count, hidden].
        """
        rows = self.combined(choice.method, choice.blend)
        if rows.dim() == 3:
            some = rows[1 + (layer if choice.index is None else round(choice.index)), : choice.count]
            return _all_without(some, self.protected[layer + 1]) if self.edited else some
        vector = rows[layer + 1] if choice.index is None else interpolated(rows, choice.index)
        return without(vector, self.protected[layer + 1]) if self.edited else vector

    def combined(self, method: str, blend: float) -> Tensor:
        """The directions of an estimator at all layers, [L+1, hidden]."""
        if method != "hybrid":
            return self.candidates[method]
        mixed = (1 - blend) * self.candidates["mean"] + blend * self.candidates["variance"]
        return normalised(mixed)


def estimate(harmful: Residuals, harmless: Residuals, settings: DirectionSettings, seed: int = 0) -> Directions:
    """Directions from harmless to harmful prompts. seed: of the randomised decomposition.

    Residuals must keep their rows if a median or a benign subspace is asked for (`DirectionSettings.needs_rows`).
    """
    difference = harmful.mean - harmless.mean
    raw = {"mean": difference}
    if "median" in settings.methods:
        raw["median"] = harmful.median() - harmless.median()
    if {"variance", "hybrid"} & set(settings.methods):
        pooled = 0.5 * (harmful.variance + harmless.variance) + settings.variance_floor
        raw["variance"] = difference / pooled.sqrt()
    raw = {method: normalised(rows) for method, rows in raw.items()}
    layers = range(difference.shape[0])
    if "principal" in settings.methods:
        raw["principal"] = torch.stack(
            [principal(harmful.layer(layer) - harmless.mean[layer], settings.most) for layer in layers]
        )
    if "som" in settings.methods:
        neurons = som.trained(harmful.kept(), settings.som, seed)[:, : settings.most]
        used = (neurons != 0).any(-1, keepdim=True)
        raw["som"] = torch.stack([orthonormal(rows) for rows in (neurons - harmless.mean[:, None]) * used])
    mean_direction = normalised(harmless.mean)
    subspaces = [
        benign_subspace(harmless.layer(layer), settings.benign_rank, settings.benign_svd, seed + layer)
        if settings.benign_rank
        else difference.new_empty(0, difference.shape[1])
        for layer in layers
    ]
    means = [mean_direction[layer : layer + 1][: int(settings.orthogonalise)] for layer in layers]
    published = settings.order == "as_published"
    if published:
        bases, afterwards = subspaces, means
    else:
        bases = [joint_basis(subspace, mean) for subspace, mean in zip(subspaces, means, strict=True)]
        afterwards = [mean[:0] for mean in means]

    def clean(vector: Tensor, layer: int) -> Tensor:
        if vector.dim() == 2:
            return _all_without(_all_without(vector, bases[layer], settings.dampening), afterwards[layer])
        return without(without(vector, bases[layer], settings.dampening), afterwards[layer])

    candidates = {method: torch.stack([clean(rows[layer], layer) for layer in layers]) for method, rows in raw.items()}
    # A joint projection that is dampened leaves a part on purpose, which the edited layers must then leave as well.
    edited = settings.protect == "edited" and (published or settings.dampening == 1.0)
    return Directions(candidates, bases, edited)


def normalised(rows: Tensor) -> Tensor:
    """Rows [..., hidden] at length 1; a row of zeros stays one."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM)


def without(vector: Tensor, basis: Tensor, dampening: float = 1.0) -> Tensor:
    """normalise(v - dampening·QᵀQv) for an orthonormal basis Q [r, hidden]; with r = 0 the vector itself."""
    if not len(basis):
        return vector
    rest = vector - dampening * (basis.T @ (basis @ vector))
    if dampening == 1.0:
        rest = rest - basis.T @ (basis @ rest)  # once more: a small rest is mostly rounding along the basis
    return normalised(rest)


def _all_without(rows: Tensor, basis: Tensor, dampening: float = 1.0) -> Tensor:
    """`without` for each of orthonormal rows [k, hidden], orthonormal again."""
    if not len(basis):
        return rows
    return orthonormal(torch.stack([without(row, basis, dampening) for row in rows]))


def principal(rows: Tensor, count: int) -> Tensor:
    """The top right singular vectors of rows [n, hidden], not centred, as [count, hidden]; zeros beyond their rank."""
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = right[:count] * (values[:count, None] > _LEAST_SINGULAR_VALUE * values[0])
    return torch.cat([kept, rows.new_zeros(count - len(kept), rows.shape[1])])


def orthonormal(rows: Tensor) -> Tensor:
    """As many rows [k, hidden], of which the first span what the first of `rows` do; zeros where a row adds nothing.

    A single row is only brought to length 1.
    """
    if len(rows) == 1:
        return normalised(rows)
    basis = joint_basis(rows.double()).to(rows)
    return torch.cat([basis, rows.new_zeros(len(rows) - len(basis), rows.shape[1])])


def joint_basis(*bases: Tensor) -> Tensor:
    """An orthonormal basis of the span of all rows of `bases` [r_i, hidden], by one QR."""
    rows = torch.cat(bases)
    if not len(rows):
        return rows
    q, r = torch.linalg.qr(rows.T)
    if len(rows) == len(r) and bool((r.diagonal().abs() > _LEAST_SINGULAR_VALUE).all()):
        return q.T
    # A row that those before it span leaves Q a column of no meaning, and the rows after it are then wrong, too.
    counts = range(1, len(rows) + 1)
    ranks = [int(torch.linalg.matrix_rank(rows[:count], rtol=_LEAST_SINGULAR_VALUE)) for count in counts]
    spanning = [number for number, rank in enumerate(ranks) if rank > max(ranks[:number], default=0)]
    return torch.linalg.qr(rows[spanning].T).Q.T


def benign_subspace(rows: Tensor, rank: int, svd: str = "exact", seed: int = 0) -> Tensor:
    """The top right singular vectors of the centred rows [n, hidden], as an orthonormal basis [k, hidden].

    k = min(rank, n - 1, hidden, numerical rank): rows that are all equal give an empty basis. svd: "exact", or
    "randomised" as ICONOCLAST's (`torch.pca_lowrank`), here with a seed of its own.
    """
    centred = rows - rows.mean(dim=0)
    k = min(rank, rows.shape[0] - 1, rows.shape[1])
    if k < 1:
        return rows.new_empty(0, rows.shape[1])
    if svd == "exact":
        _, values, right = torch.linalg.svd(centred, full_matrices=False)
        basis = right[:k]
        values = values[:k]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, values, columns = torch.pca_lowrank(centred, q=k, center=False, niter=_RANDOMISED_ITERATIONS)
        basis = columns.T
    # The rows' own size is the scale: a constant layer's centred rows are rounding, and have large vectors of nothing.
    scale = max(float(rows.abs().max()) * math.sqrt(rows.numel()), _LEAST_NORM)
    return basis[values > _LEAST_SINGULAR_VALUE * scale]


def interpolated(rows: Tensor, index: float) -> Tensor:
    """The direction between layers (HERETIC): y = index + 1, then (1 - f)·d_⌊y⌋ + f·d_⌊y⌋₊₁, at length 1.

    rows: [L+1, hidden]. Signs are not aligned. Raises ValueError for an index that the layers do not have.
    """
    row = index + 1
    below = math.floor(row)
    share = row - below
    if below < 0 or below + (share > 0) >= rows.shape[0]:
        raise ValueError(f"direction index {index} lies outside the {rows.shape[0] - 1} layers")
    above = min(below + 1, rows.shape[0] - 1)
    return normalised((1 - share) * rows[below] + share * rows[above])


def cosines(first: Tensor, second: Tensor) -> list[float]:
    """Cosine per layer between two sets of directions [L+1, hidden]; 0 where one has none."""
    return (normalised(first) * normalised(second)).sum(-1).tolist()
