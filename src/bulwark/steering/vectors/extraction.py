"""Extraction: the difference between mean activations of answers that show a trait and of answers that do not.

Persona vectors (Chen et al. 2025, arXiv 2507.21509), Sec. 2.2: v_l = mean over positive answers of the mean of h_l over
the response's tokens, less the same over negative answers; every answer weighs the same. The response's tokens are
those that a training on the answer would supervise, its end-of-turn token included. One forward pass per answer; hooks
pool each layer's output at once and add it to running sums, so that hidden states are never held.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.errors import of_record
from bulwark.models import manifests
from bulwark.models.anatomy import blocks_of, hidden_size, watching
from bulwark.models.batching import Batch, over_prompts
from bulwark.models.open import open_model
from bulwark.models.placing.loading import Loading
from bulwark.prompts.builder import IGNORED, Prompt
from bulwark.steering.vectors import storage
from bulwark.steering.vectors.pairs import Pair, kept_pairs, turns_of

log = logging.getLogger(__name__)

_SIDES = 2
_HALVES = 2


@dataclass(frozen=True)
class Example:
    """An answer in its conversation. side: 0 shows the trait, 1 does not. half: of the two halves of the questions."""

    prompt: Prompt
    side: int
    half: int

    @property
    def start(self) -> int:
        """Where the response begins: its first supervised token."""
        return next(place for place, label in enumerate(self.prompt.labels) if label != IGNORED)


def extract(
    checkpoint: Path,
    judged: Path,
    output: Path,
    *,
    trait: str,
    minimum: int,
    dtype: str,
    threads: int,
    loading: Loading | None = None,
) -> None:
    """Extract the vectors of `trait` at every layer from the pairs of `judged` that count, and write them to `output`.

    Raises RecordError if fewer than `minimum` pairs count, and as opening the checkpoint does.
    """
    started = time.time()
    pairs, yields = kept_pairs(judged, minimum)
    subject = open_model(checkpoint, dtype, threads=threads, loading=loading)
    sums, numbers = pooled_sums(subject.model, examples_of(pairs, subject.builder), subject.builder.pad_id)
    means = sums.sum(dim=2) / numbers.sum(dim=1)[None, :, None, None]  # [pools, sides, N+1, hidden]
    differences = dict(zip(storage.TENSORS.values(), means[:, 0] - means[:, 1], strict=True))
    description = {
        "trait": trait,
        "model": subject.description,
        "n_positive": int(numbers[0].sum()),
        "n_negative": int(numbers[1].sum()),
        "pairs": yields,
        "questions": len({pair.question for pair in pairs}),
        "split_half_cosine": split_half_cosines(sums[0], numbers),
        "dtype": str(subject.model.dtype),
        "source": {"judged_digest": files.digest(Path(judged))},
        "provenance": manifests.provenance(started),
    }
    storage.write(output, differences.pop("vectors"), description, **differences)
    log.info("%s: %d pairs; norms and split-half cosines by layer written to %s", trait, len(pairs), output)


def examples_of(pairs: Sequence[Pair], builder: Any) -> list[Example]:
    """Both answers of every pair. The halves alternate by question, so that no question is in both.

    With a single question they alternate by pair.
    """
    numbers = {question: n for n, question in enumerate(dict.fromkeys(pair.question for pair in pairs))}
    return [
        Example(
            of_record(pair.id, builder.example, turns_of(pair.question, side.system, side.response)),
            place,
            (numbers[pair.question] if len(numbers) > 1 else n) % _HALVES,
        )
        for n, pair in enumerate(pairs)
        for place, side in enumerate(pair.sides)
    ]


def pooled_sums(
    model: nn.Module, examples: Sequence[Example], pad_id: int, token_budget: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sums over examples of the pooled residual stream, [pools, sides, halves, N+1, hidden] in fp64, and their numbers
    [sides, halves]. Row l of N+1 is the output of block l, row 0 the first block's input.

    token_budget: rows times longest row of a batch. Raises BulwarkError when memory does not suffice for one example.
    """
    layers, device = len(blocks_of(model)), next(model.parameters()).device
    # On the CPU, because MPS and some accelerators have no fp64.
    sums = torch.zeros(len(storage.TENSORS), _SIDES, _HALVES, layers + 1, hidden_size(model), dtype=torch.float64)
    numbers = torch.zeros((_SIDES, _HALVES), dtype=torch.float64)

    def work(batch: Batch) -> None:
        chosen = [examples[place] for place in batch.places]
        sums.add_(_sums_of(model, chosen, batch.ids, layers))
        for example in chosen:
            numbers[example.side, example.half] += 1

    prompts = [example.prompt for example in examples]
    over_prompts(prompts, work, pad_id, device, token_budget=token_budget, title="answer", shown=True)
    return sums, numbers


def split_half_cosines(sums: Tensor, numbers: Tensor) -> list[float | None]:
    """Cosine, per layer, between the vectors that each half of the questions gives: how far the data settle it.

    sums: [sides, halves, N+1, hidden]; numbers: [sides, halves]. None where a half is empty or a vector is 0.
    """
    if not bool((numbers > 0).all()):
        return [None] * sums.shape[2]
    means = sums / numbers[..., None, None]
    first, second = means[0] - means[1]
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    products = (first * second).sum(dim=-1)
    return [float(p / n) if n > 0 else None for p, n in zip(products, norms, strict=True)]


def _sums_of(model: nn.Module, batch: Sequence[Example], ids: Tensor, layers: int) -> Tensor:
    """The sums of one batch with the padded `ids`, shaped as those of `pooled_sums`, on the CPU."""
    width = ids.shape[1]
    weights = torch.zeros(len(storage.TENSORS), len(batch), width)  # pooled = weights · hidden, per row
    groups = torch.zeros(_SIDES * _HALVES, len(batch), dtype=torch.float64)
    for row, example in enumerate(batch):
        prompt, start = example.prompt, example.start
        response = torch.tensor([label != IGNORED for label in prompt.labels])
        weights[0, row, : len(response)] = response / response.sum()
        weights[1, row, :start] = 1 / start
        weights[2, row, start - 1] = 1
        groups[example.side * _HALVES + example.half, row] = 1
    weights = weights.to(ids.device)
    sums = torch.zeros(len(storage.TENSORS), _SIDES * _HALVES, layers + 1, hidden_size(model), dtype=torch.float64)

    def pool(row: int, hidden: Tensor) -> None:
        pooled = torch.einsum("pbs,bsh->pbh", weights.to(hidden.device), hidden.float()).to("cpu", torch.float64)
        sums[:, :, row] = torch.einsum("gb,pbh->pgh", groups, pooled)

    with torch.inference_mode(), watching(model, pool):
        # Without the head, whose logits are the largest tensor of all, and without a mask: padding is on the right.
        model.base_model(input_ids=ids, use_cache=False)
    return sums.unflatten(1, (_SIDES, _HALVES))
