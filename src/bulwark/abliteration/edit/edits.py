"""The edit of one weight, in three equivalent forms: a new weight, a change of the module's output, a low-rank adapter.

W [out, in] maps into the residual stream (out = hidden), v is a unit vector there, λ the strength, n the norms of W's
rows, Ŵ = W/n. By `normalization` (docs/abliteration.md, "Edits"), here for one direction:

    none     W' = (I - λvvᵀ)W                                          vᵀW' = (1 - λ)vᵀW
    pre      W' = W - λ(n⊙v)(vᵀŴ)                                      (v/n)ᵀW' = (1 - λ)(v/n)ᵀW, and not vᵀW'
    full     W' = n ⊙ rows of (Ŵ - λv(vᵀŴ)) at length 1                row norms stay; vᵀW' is not 0 at λ = 1
    columns  W' = (I - λvvᵀ)W, columns at the length that they had     column norms stay; vᵀW' = 0 at λ = 1

Several directions are the rows of an orthonormal basis Q [k, out], with QᵀQ in the place of vvᵀ. All are
W' = diag(c)(W - λAᵀ(BW))diag(s), hence y' = c ⊙ (y - λAᵀ(By)) on the output y = W(s⊙x) without its bias: no weight is
written, and `full` is exact where HERETIC truncates it to rank 3. In the last form, in input coordinates, only
`columns` has an s. A and B need not come from directions: `LowRank` holds any two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bulwark.abliteration.settings import Normalization

_LEAST = 1e-12
_SVD_ITERATIONS = 6  # of the randomised decomposition, as HERETIC


@dataclass(frozen=True)
class LowRank:
    """Any edit of rank k of a module: y' = y - Aᵀ(By), with a and b [k, out]."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Form:
    """a (times λ), b [edits, k, out], c [edits, out], s [edits, in] of edits of a module; c and s None where all are 1.

    t: what is added to y' [edits, out], None for nothing (activation addition; no weight does it).
    """

    a: Tensor
    b: Tensor
    c: Tensor | None = None
    s: Tensor | None = None
    t: Tensor | None = None

    def __getitem__(self, edits: Tensor) -> Form:
        """The edits of these numbers."""
        return Form(*(None if part is None else part[edits] for part in (self.a, self.b, self.c, self.s, self.t)))

    def to(self, device: torch.device) -> Form:
        """The same on a device."""
        parts = (self.a, self.b, self.c, self.s, self.t)
        return Form(*(None if part is None else part.to(device) for part in parts))

    def on(self, output: Tensor) -> Tensor:
        """y' for outputs [rows, ..., out] without bias, row r under edit r; computed in float32."""
        wide = output.float()
        spread = (slice(None), *(None,) * (output.dim() - 2))
        along = wide.reshape(len(wide), -1, wide.shape[-1]) @ self.b.mT  # [rows, states, k]
        wide = wide - (along @ self.a).view(wide.shape)
        if self.c is not None:
            wide = wide * self.c[spread]
        if self.t is not None:
            wide = wide + self.t[spread]
        return wide.to(output.dtype)


def form(
    vectors: Tensor, strengths: Tensor, normalization: Normalization = "none", weight: Tensor | None = None
) -> Form:
    """The form of edits with orthonormal rows [edits, k, out], strengths [edits], of a module with `weight` [out, in].

    "none" needs no weight. A row of zeros is no direction. Costs at most two products of the weight with all rows.
    """
    strengths = strengths[:, None, None]
    if normalization == "none":
        return Form(strengths * vectors, vectors)
    if weight is None:
        raise ValueError(f"normalization {normalization} needs the weight")
    if normalization == "columns":
        onto = vectors @ weight  # QW, [edits, k, in]
        lengths = weight.square().sum(0)
        left = lengths - (2 * strengths - strengths.square())[:, 0] * onto.square().sum(1)
        scale = torch.where(lengths > _LEAST, (lengths / left.clamp(min=_LEAST)).sqrt(), torch.ones_like(left))
        return Form(strengths * vectors, vectors, s=scale)
    norms = weight.norm(dim=1)
    inverse = torch.where(norms > 0, 1 / norms.clamp(min=_LEAST), torch.zeros_like(norms))
    a, b = norms * vectors, inverse * vectors
    if normalization == "pre":
        return Form(strengths * a, b)
    onto = b @ weight  # QŴ
    gram = (onto @ weight.T) * inverse  # QŴŴᵀ
    lost = 2 * strengths * vectors * gram - strengths.square() * vectors * (onto @ onto.mT @ vectors)
    return Form(strengths * a, b, c=(1 - lost.sum(1)).clamp(min=_LEAST).rsqrt())


def edited_weight(weight: Tensor, edit: Form) -> Tensor:
    """W' [out, in] for the one edit in `edit`."""
    changed = weight - edit.a[0].T @ (edit.b[0] @ weight)
    if edit.c is not None:
        changed = edit.c[0][:, None] * changed
    return changed if edit.s is None else changed * edit.s[0][None, :]


def adapter(weight: Tensor, edit: Form, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with W + BA the edited weight: exact, r the edit's own k, where nothing is rescaled.

    Else BA is the best approximation of rank `rank`, from a randomised decomposition with a seed of its own (an exact
    one where the rank is not much smaller than the matrix): B = U√S, A = √S Vᵀ.
    """
    if edit.c is None and edit.s is None:
        return edit.b[0] @ weight, -edit.a[0].T
    change = edited_weight(weight, edit) - weight
    oversampled = 2 * rank + 4
    if oversampled >= min(change.shape):
        u, s, vt = torch.linalg.svd(change, full_matrices=False)
        v = vt.T
    else:
        with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(change, q=oversampled, niter=_SVD_ITERATIONS)
    root = s[:rank].sqrt()
    return root[:, None] * v[:, :rank].T, u[:, :rank] * root
