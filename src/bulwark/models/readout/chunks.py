"""Values of logits in chunks of positions: the logits of all positions, the largest tensor of all, are never there.

Where only a weighted sum is asked for, the gradients are computed together with it, chunk by chunk, so that every
chunk's logits are computed once (Hsu et al. 2024, arXiv 2410.10989, save the same memory in the same way). Otherwise
the weights are known in the backward pass only, and logits are computed again there unless one chunk holds them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bulwark.models.readout.losses import Form, Loss

CPU_CHUNK = 2**24
GPU_CHUNK = 2**28
"""Logits of a chunk. On a GPU a chunk has to be large enough to hide that the weight's gradient, which is added to in
each, is read and written: about a thousand positions."""


@dataclass(frozen=True)
class Task:
    """What is computed. weights: of each position in the sum, [n] or one number; None for the single values.

    learn: whether gradients may be asked for. terms: how many pairs of inputs and matrices make up the logits.
    """

    loss: Loss
    form: Form
    weights: Tensor | float | None
    learn: bool
    terms: int


def few(positions: int, vocabulary: int, device: torch.device) -> bool:
    """Whether all logits are so few that torch's own way, which keeps several tensors of their size, takes no more
    memory than chunks do. Sums are then rounded as they are everywhere else.
    """
    return 2 * positions * vocabulary <= _entries(device)


def _entries(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK


def values_of(
    loss: Loss,
    form: Form,
    inputs: Sequence[Tensor],
    matrices: Sequence[Tensor],
    bias: Tensor | None = None,
    weights: Tensor | float | None = None,
) -> Tensor:
    """`loss` of the logits form(Σ x Wᵀ + bias), over pairs of `inputs` [n, k] and `matrices` [vocabulary, k].

    Returns a value for each of the n positions or, with `weights` (of each, [n], or one number for all), their weighted
    sum. Gradients reach inputs, matrices and bias. They cannot be differentiated again, and those of a sum can be asked
    for once.
    """
    task = Task(loss, form, weights, torch.is_grad_enabled(), len(inputs))
    return _Values.apply(task, *inputs, *matrices, bias)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, *tensors: Tensor | None) -> Tensor:
        ctx.task, ctx.only, ctx.gradients = task, None, None
        needed = ctx.needs_input_grad[1:] if task.learn else (False,) * len(tensors)
        if task.weights is not None and any(needed):
            total, ctx.gradients = _swept(task, tensors, needed, _spread(task.weights, tensors[0]))
            return total
        raw, found, parts = None, [], _parts(task, tensors)
        for part in parts:
            raw = _raw(task, tensors, part)
            found.append(task.loss.values(task.form(raw), part))
        values = torch.cat(found)
        if task.weights is not None:
            return (values * _spread(task.weights, tensors[0])).sum()
        if any(needed):
            ctx.save_for_backward(*tensors)
            ctx.only = raw if len(parts) == 1 else None
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.task.weights is None:
            only, ctx.only = ctx.only, None
            return None, *_swept(ctx.task, ctx.saved_tensors, ctx.needs_input_grad[1:], gradient, only)[1]
        if ctx.gradients is None:
            raise RuntimeError("The gradients of this sum have been asked for already; they are kept once.")
        found, ctx.gradients = ctx.gradients, None
        if gradient.device.type == "cpu" and gradient == 1:
            return None, *found
        return None, *(None if one is None else one.mul_(gradient.to(one.dtype)) for one in found)


def _swept(
    task: Task, tensors: Sequence[Tensor | None], needed: Sequence[bool], weights: Tensor, only: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """The weighted sum of the values, and its gradients along `tensors` where they are needed.

    weights: [n]. only: the output embedding's result, if it is known.
    """
    terms = list(zip(*_split(task, tensors)[:2], *_split(task, needed)[:2], strict=True))
    bias, bias_needed = tensors[-1], needed[-1]
    of_inputs = [torch.empty_like(x) if need else None for x, _, need, _ in terms]
    of_matrices: list[Tensor | None] = [None] * len(terms)
    of_bias = torch.zeros_like(bias, dtype=weights.dtype) if bias_needed else None
    total = weights.new_zeros(())
    parts = _parts(task, tensors)
    for part in parts:
        raw = _raw(task, tensors, part) if only is None else only
        values, slopes = task.loss.slopes(raw, task.form, part, weights[part])
        total += (values * weights[part]).sum()
        del raw
        for number, (x, matrix, input_needed, matrix_needed) in enumerate(terms):
            if input_needed:
                torch.mm(slopes, matrix, out=of_inputs[number][part])
            if matrix_needed:
                of_matrices[number] = _added(of_matrices[number], slopes.T, x[part], len(parts))
        if of_bias is not None:
            of_bias += slopes.sum(0)
    found = [*of_inputs, *of_matrices, of_bias]
    return total, [None if of is None else of.to(given.dtype) for of, given in zip(found, tensors, strict=True)]


def _added(so_far: Tensor | None, left: Tensor, right: Tensor, parts: int) -> Tensor:
    """so_far + left @ right. In half precision the sum of several would be rounded after each: then it is float32."""
    if so_far is None:
        product = left @ right
        return product.float() if parts > 1 and product.dtype.itemsize < 4 else product
    if so_far.dtype == left.dtype:
        return so_far.addmm_(left, right)
    return so_far.add_(left @ right)


def _split(task: Task, things: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Any]:
    """Of inputs, of matrices, of the bias."""
    return things[: task.terms], things[task.terms : -1], things[-1]


def _parts(task: Task, tensors: Sequence[Tensor | None]) -> list[slice]:
    """The chunks, one at least."""
    positions, vocabulary = len(tensors[0]), len(tensors[task.terms])
    size = max(1, _entries(tensors[0].device) // (vocabulary * task.loss.buffers))
    return [slice(start, min(start + size, positions)) for start in range(0, max(1, positions), size)]


def _raw(task: Task, tensors: Sequence[Tensor | None], part: slice) -> Tensor:
    """Σ x Wᵀ + bias at these positions."""
    inputs, matrices, bias = _split(task, tensors)
    raw = F.linear(inputs[0][part], matrices[0], bias)
    for x, matrix in zip(inputs[1:], matrices[1:], strict=True):
        raw.addmm_(x[part], matrix.T)
    return raw


def _spread(weights: Tensor | float, inputs: Tensor) -> Tensor:
    """The weights as a tensor [n], in float32 at least."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    if isinstance(weights, Tensor):
        return weights.to(dtype)
    return torch.full((len(inputs),), float(weights), dtype=dtype, device=inputs.device)
