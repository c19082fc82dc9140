"""What a GPU can do, and how much of that is reached: the two constants that all guessed times rest on.

`accelerator: h100` in a configuration says which GPUs the jobs get; an overlay says another.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "h100"


@dataclass(frozen=True)
class Accelerator:
    """flops: of dense bfloat16 products, per second. bandwidth: of its memory, in bytes per second. memory: bytes."""

    flops: float
    bandwidth: float
    memory: float


# NVIDIA's data sheets, without sparsity.
ACCELERATORS = {
    "l4": Accelerator(121e12, 0.3e12, 24e9),
    "a10": Accelerator(125e12, 0.6e12, 24e9),
    "rtx4090": Accelerator(165e12, 1.008e12, 24e9),
    "l40s": Accelerator(362e12, 0.864e12, 48e9),
    "a100": Accelerator(312e12, 2.039e12, 80e9),
    "h100": Accelerator(989e12, 3.35e12, 80e9),
    "h200": Accelerator(989e12, 4.8e12, 141e9),
}
# What a job without a GPU has, per thread: a guess.
CPU_THREAD = Accelerator(25e9, 4e9, 0.0)

# The share of `flops` that a training reaches. Two published times give it (see `published`): TAR's 18 hours on 8 A100
# 0.19, SecAlign's half an hour on 8 H100 less than 0.1; short rows on many ranks reach less than long packed ones.
TRAINING_SHARE = 0.15
# The share of `bandwidth` at which answering reads the weights per new token. From ASIDE's notebooks: 1,000 prompts of
# an 8B model in 16 min 47 s, 32 at a time, up to 1,024 tokens each, which is 31.5 ms per token of a batch.
DECODING_SHARE = 0.152
# Until the first batch: processes, imports, the network; and reading the weights, in bytes per second.
START_SECONDS = 120.0
LOADING = 1e9
