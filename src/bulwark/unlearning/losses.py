"""The losses of defenses that unlearn, each a pure function of tensors.

A function gives a value for each token or example that it is asked about and divides by nothing: the step takes the
sum and divides it by what the whole optimizer step has of them (`training.batches.Batch`), so that the shares of all
micro-batches and ranks add up to a mean, and padding is counted nowhere. All is computed in float32 at least.

`positions` are indices into the flattened [batch·seq], [n]; hidden states are [batch, seq, hidden].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# splitmix64 (Steele et al. 2014, OOPSLA, Fig. 14) in signed arithmetic
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def entropy(logits: Tensor) -> Tensor:
    """H = -Σ p log p over the vocabulary, in nats: [..., vocabulary] to [...]. At most ln(vocabulary).

    TAR (Tamirisa et al., arXiv 2408.00761), Sec. 4: its tamper-resistance loss and "max entropy" are the negative mean.
    """
    log_p = F.log_softmax(_wide(logits), dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def log_one_minus(logits: Tensor, targets: Tensor) -> Tensor:
    """log(1 - p) of the targets' probability: [n, vocabulary] and [n] to [n], stable for p near 0 and near 1.

    The log-sum-exp of all other logits, less that of all (TAR's authors' code, which writes -1e10 for the target's).
    """
    logits = _wide(logits)
    others = logits.scatter(-1, targets.unsqueeze(-1), -math.inf)
    return torch.logsumexp(others, dim=-1) - torch.logsumexp(logits, dim=-1)


def min_posterior(logits: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """-log(1 - p) of each target, 0 where log p is below `threshold`: [n, vocabulary] and [n] to [n].

    TAR, App. G.1, "Min Posterior": a target that is forgotten already gives no gradient, but counts in the mean.
    """
    log_p = F.log_softmax(_wide(logits), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return torch.where(log_p < threshold, 0.0, -log_one_minus(logits, targets))


def soft_cross_entropy(logits: Tensor, reference: Tensor) -> Tensor:
    """-Σ p_ref log p, [n, vocabulary] twice to [n]: KL(p_ref ‖ p) up to the reference's entropy, which is constant.

    The term by which LLMU keeps what is normal (Yao et al., arXiv 2310.10683, eq. 6).
    """
    return -(F.softmax(_wide(reference), dim=-1) * F.log_softmax(_wide(logits), dim=-1)).sum(dim=-1)


def mean_by_example(losses: Tensor, owners: Tensor, count: int) -> Tensor:
    """The mean of each example's losses, from those of all targets [n] to [count]; 0 for an example that has none.

    owners: [n], the example (from 0) that each of the n targets belongs to.
    """
    sums = losses.new_zeros(count).index_add(0, owners, losses)
    return sums / torch.bincount(owners, minlength=count).clamp(min=1)


def random_rows(ids: Tensor, width: int, seed: int) -> Tensor:
    """A fixed row of independent N(0, 1) numbers for each token id: [n] to [n, width], float32.

    The table of random mapping (TAR, Sec. 4), of which only the rows that are asked for exist: number j of row i is a
    function of (seed, i, j), the same on all ranks and after a resumption. For Llama 3's 128,256 x 4,096 a stored table
    would take 2.1 GB on every rank. This makes the rows of a batch anew: some 20 elementwise operations on 64-bit
    integers, for 2,048 different tokens 67 MB each, of which a few exist at once.
    """
    places = torch.arange(width, device=ids.device) + ids.unsqueeze(-1) * width
    bits = _mixed(places * _STEP + _mixed(torch.full_like(places[:1, :1], seed) * _STEP + _STEP))
    first, second = _shifted(bits, 40), bits & 0xFFFFFF  # 24 bits each, which a float32 holds exactly
    radius = torch.sqrt(-2.0 * torch.log((first.float() + 0.5) / 2**24))
    return radius * torch.cos(second.float() * (2 * math.pi / 2**24))


def misalignment(states: Sequence[Tensor], positions: Tensor, rows: Tensor) -> Tensor:
    """1 - |cos(h, r)| of each token's hidden states with its row, the mean over layers: [n].

    rows: [n, hidden], one per position, the same at all layers. Parallel and antiparallel are both 0 (TAR's authors'
    code; its random mapping).
    """
    cosines = [F.cosine_similarity(_at(layer, positions), rows, dim=-1).abs() for layer in states]
    return 1.0 - torch.stack(cosines).mean(dim=0)


def alignment(states: Sequence[Tensor], references: Sequence[Tensor], positions: Tensor) -> Tensor:
    """ReLU(cos(h, h_ref)) of each token, the mean over layers: [n]. Orthogonal or opposed is 0.

    Representation rerouting (Zou et al. 2024, arXiv 2406.04313, Sec. 3 and Alg. 1).
    """
    pairs = zip(states, references, strict=True)
    cosines = [F.cosine_similarity(_at(now, positions), _at(then, positions), dim=-1) for now, then in pairs]
    return torch.relu(torch.stack(cosines)).mean(dim=0)


def distance(
    states: Sequence[Tensor], references: Sequence[Tensor], positions: Tensor, squared: bool = False
) -> Tensor:
    """‖h - h_ref‖₂ of each token, or its square, the mean over layers: [n].

    Plain in rerouting and in TAR's code, squared in TAR's eq. 2. Where nothing has changed the gradient is 0.
    """
    pairs = zip(states, references, strict=True)
    lengths = torch.stack([torch.linalg.vector_norm(_at(now - then, positions), dim=-1) for now, then in pairs])
    return (lengths.square() if squared else lengths).mean(dim=0)


def mean_square(states: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    """The mean over coordinates of (h - target)² of each token: [n]. target: [hidden], or [batch, seq, hidden].

    RMU's two losses (Li et al. 2024, arXiv 2403.03218, Sec. 4).
    """
    wanted = _wide(target) if target.dim() == 1 else _at(target, positions)
    return (_at(states, positions) - wanted).square().mean(dim=-1)


def discrepancy(first: Tensor, second: Tensor, kernels: int = 5, factor: float = 2.0) -> Tensor:
    """The squared maximum mean discrepancy of two samples, [n, width] each, by a sum of Gaussian kernels: a scalar.

    k(x, y) = Σ_i exp(-‖x - y‖² / b·factor^(i - kernels // 2)) with b the mean squared distance of two different samples
    of both together, through which no gradient goes; the mean over pairs, a sample with itself included (RepNoise,
    Rosati et al. 2024, arXiv 2405.14577, Sec. 3; its authors' code). Needs the first to differ from the second.
    """
    both = _wide(torch.cat([first, second]))
    count, size = len(both), len(first)
    products = both @ both.T  # all differences at once would be [n, n, width]
    lengths = products.diagonal()
    squares = (lengths.unsqueeze(0) + lengths.unsqueeze(1) - 2 * products).clamp(min=0)
    bandwidth = squares.detach().sum() / (count * count - count)
    kernel = sum(torch.exp(-squares / (bandwidth * factor ** (i - kernels // 2))) for i in range(kernels))
    return kernel[:size, :size].mean() + kernel[size:, size:].mean() - 2 * kernel[:size, size:].mean()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at(states: Tensor, positions: Tensor) -> Tensor:
    return _wide(states.flatten(0, 1).index_select(0, positions))


def _mixed(numbers: Tensor) -> Tensor:
    """The finaliser of splitmix64, on 64-bit integers that wrap around."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shifted right with noughts; torch's own shift of signed integers repeats the sign."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)
