"""Cross-entropy in chunks against torch's own over all logits: time, and bytes beyond the weight and its gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.processes import elsewhere, memory
from bench.timing import Ratio, ratio
from bulwark.models.readout import chunks
from bulwark.models.readout.losses import CrossEntropy, Form

VOCABULARY = 152_064  # Qwen2.5's
HIDDEN, TARGETS = 128, 1024


def run() -> Iterator[Ratio]:
    """Forward and backward pass of the loss in chunks / over all logits, in float32 and bfloat16."""
    for dtype, wanted in ((torch.float32, "≤ 1.15"), (torch.bfloat16, "≤ 1.15")):
        name = str(dtype).removeprefix("torch.")
        hidden, weight, targets = _given(dtype)
        yield ratio(
            f"time in chunks / over all logits, {TARGETS} targets × {VOCABULARY}, hidden size {HIDDEN}, {name}",
            lambda h=hidden, w=weight, t=targets: _in_chunks(h, w, t),
            lambda h=hidden, w=weight, t=targets: _plain(h, w, t),
            wanted,
        )
        del hidden, weight, targets
        for work, limit in (("chunks", "≤ 1.5"), ("plain", "")):
            peak = elsewhere(_bytes, work, name)
            yield Ratio(f"bytes per target × vocabulary entry, {work}, {name}", peak, peak, peak, limit)


def _given(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(TARGETS, HIDDEN, generator=draw).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(VOCABULARY, HIDDEN, generator=draw)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (TARGETS,), generator=draw)


def _in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    form = Form(1.0, None, hidden.dtype)
    _learn(lambda: chunks.values_of(CrossEntropy(targets), form, [hidden], [weight], weights=1 / TARGETS), weight)


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    _learn(lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets), weight)


def _learn(loss: Callable[[], Tensor], weight: Tensor) -> None:
    weight.grad = None
    loss().backward()


def _bytes(work: str, dtype: str) -> float:
    """The peak beyond hidden states, weight and the weight's gradient, per target × vocabulary entry."""
    hidden, weight, targets = _given(getattr(torch, dtype))
    learn = _in_chunks if work == "chunks" else _plain
    small = hidden[:1].detach().requires_grad_()
    _learn(lambda: F.cross_entropy(F.linear(small, weight).float(), targets[:1]), weight)  # what a first pass loads
    weight.grad = None
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = memory("VmRSS")
    for _ in range(3):
        learn(hidden, weight, targets)
    return (memory("VmHWM") - before - weight.numel() * weight.dtype.itemsize) / (TARGETS * VOCABULARY)
