"""What is made of each position's logits: cross-entropy, and any other function of them.

A `Loss` is asked about a part of the positions at a time, so it must treat each by itself. All is computed in float32
at least. Positions are told by a slice of those that the pass reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What a model makes of its output embedding's result x: y = c·tanh(s·x / c), or s·x without a cap c.

    Gemma caps (arXiv 2408.00118, Sec. 2), Cohere and Granite scale. dtype: of y.
    """

    scale: float
    cap: float | None
    dtype: torch.dtype

    def __call__(self, raw: Tensor) -> Tensor:
        scaled = raw.to(self.dtype)
        if self.scale != 1.0:
            scaled = scaled * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def back(self, slope: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """The slope along x, of `dtype`, from that along y; changes `slope`. logits: y."""
        if self.cap is not None:
            slope = slope.mul_(1.0 - (logits / self.cap).square_())
        if self.scale != 1.0:
            slope = slope.mul_(self.scale)
        return slope.to(dtype)


class Loss(Protocol):
    """A number for each position, from its logits.

    buffers: how many tensors of the size of a part's logits it holds at once, beside them.
    """

    buffers: int

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """[m], or [m, numbers] where no gradient is asked for, of logits [m, vocabulary] at these positions."""

    def slopes(self, raw: Tensor, form: Form, rows: slice, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The values [m], and the gradient of Σ weights·values along `raw` [m, vocabulary], in its dtype."""

    def around(self, work: Callable[[], Tensor]) -> Tensor:
        """Do `work`, in which the values are taken."""


class CrossEntropy:
    """-ln p(target), with the gradient in closed form: softmax less one at the target.

    targets: plain ids, [n].
    """

    buffers = 1

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        return F.cross_entropy(wide(logits), self.targets[rows], reduction="none")

    def slopes(self, raw: Tensor, form: Form, rows: slice, weights: Tensor) -> tuple[Tensor, Tensor]:
        targets = self.targets[rows].unsqueeze(-1)
        logits = form(raw)
        softmax = F.log_softmax(wide(logits), dim=-1)
        values = -softmax.gather(-1, targets).squeeze(-1)
        softmax.exp_()
        softmax.scatter_add_(-1, targets, softmax.new_full(targets.shape, -1.0))
        return values, form.back(softmax.mul_(weights.unsqueeze(-1)).to(logits.dtype), logits, raw.dtype)

    def around(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


class Each:
    """Any function of logits [m, vocabulary] and the positions that they stand at; its gradient is torch's.

    buffers: see `Loss`; what is usual is what a function of log-probabilities holds with its gradient.
    """

    def __init__(self, of: Callable[[Tensor, slice], Tensor], buffers: int = 6) -> None:
        self._of, self.buffers = of, buffers

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        return self._of(logits, rows)

    def slopes(self, raw: Tensor, form: Form, rows: slice, weights: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            values = self.values(form(leaf), rows)
            [slope] = torch.autograd.grad(values, [leaf], grad_outputs=weights.to(values.dtype))
        return values.detach(), slope

    def around(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


def wide(values: Tensor) -> Tensor:
    """In float32, or wider where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
