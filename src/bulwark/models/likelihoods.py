"""Batched log-likelihoods of given continuations: length-sorted, within a token budget, resumable.

Beside `generation`, the other way of asking a model. Requests whose input is the same share one row, so that a
question with four options of one token costs one pass and not four; only the positions that predict a continuation
go through the output embedding.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bulwark.errors import BulwarkError
from bulwark.models.answers import Answer, Partial
from bulwark.models.batching import NOT_NUMBERS, cache_token_budget, in_batches, padded, progress
from bulwark.models.readout import heads
from bulwark.models.readout.losses import Each, wide

log = logging.getLogger(__name__)

MOST_TOKENS = 2**17  # of a batch
CPU_TOKENS = 2**12  # of one on a CPU: what stays in its caches is faster there than large batches


@dataclass(frozen=True)
class Continuation:
    """`targets` (plain ids, at least one) after `ids`, which carry their roles and include all targets but the last."""

    key: str
    ids: list[int]
    targets: list[int]


class LogLikelihood(NamedTuple):
    """The natural log-probability of a whole continuation, and whether greedy decoding would give just this one."""

    value: float
    greedy: bool


def log_likelihoods(
    model,
    requests: Sequence[Continuation],
    *,
    pad_id: int,
    partial: Path | None = None,
    fingerprint: str = "",
    token_budget: int | None = None,
) -> list[LogLikelihood]:
    """The log-likelihood of every request, in the given order.

    model: a causal LM whose input embedding is a RoleEmbedding, in evaluation mode. token_budget: rows times longest
    row of a batch; None asks the device's free memory. partial, fingerprint: as in `generation.generate`.
    Raises BulwarkError for duplicate keys, logits that are not numbers, and when memory does not suffice for one row.
    """
    if len({request.key for request in requests}) < len(requests):
        raise BulwarkError("Two continuations have the same key. Give each its own.")
    kept = Partial(partial, f"log-likelihoods\n{fingerprint}")
    digests = [kept.digest((request.ids, request.targets)) for request in requests]
    found: dict[int, LogLikelihood] = {}
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        earlier = kept.answers.get((request.key, digests[number]))
        if earlier is not None:
            found[number] = LogLikelihood(*json.loads(earlier.response))
        else:
            rows.setdefault(tuple(request.ids), []).append(number)
    if found:
        log.info("%d of %d log-likelihoods are there already", len(found), len(requests))
    pending, on_cpu = list(rows), model.device.type == "cpu"

    def work(batch: list[int]) -> None:
        given = [pending[row] for row in batch]
        scored = _scored(model, given, [[requests[n] for n in rows[row]] for row in given], pad_id)
        done = [number for row in given for number in rows[row]]
        for number, result in zip(done, scored, strict=True):
            found[number] = result
            request, line = requests[number], json.dumps([result.value, result.greedy])
            kept.append(Answer(request.key, line, len(request.targets), "stop", False), digests[number])
        kept.flush()
        advance(len(done))

    with progress(len(requests), len(found)) as advance, kept, kept.resumable(found, requests, "log-likelihoods"):
        in_batches(
            [len(ids) for ids in pending],
            work,
            token_budget or (CPU_TOKENS if on_cpu else min(MOST_TOKENS, cache_token_budget(model))),
            lambda row: f'row ("{requests[rows[pending[row]][0]].key}") of {len(pending[row])} tokens',
            "Take fewer examples in front. ",
        )
    return [found[number] for number in range(len(requests))]


@torch.inference_mode()
def _scored(
    model, rows: Sequence[tuple[int, ...]], requests: Sequence[Sequence[Continuation]], pad_id: int
) -> list[LogLikelihood]:
    """One pass over `rows`, padded on the right where causal attention cannot see it; the results row by row.

    What several requests of a row have at one position shares its logits.
    """
    ids = padded(rows, pad_id).to(model.device)
    places: dict[int, int] = {}  # in the flattened [rows·longest]: the number of the position among those that are read
    wanted: list[list[int]] = []  # of each, the targets
    spots: list[list[tuple[int, int]]] = []  # of each request, position and target by number
    for number, row in enumerate(rows):
        for request in requests[number]:
            spots.append([])
            for back, target in enumerate(reversed(request.targets), start=1):
                place = places.setdefault(number * ids.shape[1] + len(row) - back, len(places))
                if place == len(wanted):
                    wanted.append([])
                if target not in wanted[place]:
                    wanted[place].append(target)
                spots[-1].append((place, wanted[place].index(target)))
    most = max(map(len, wanted))
    targets = torch.tensor([[*some, *[some[0]] * (most - len(some))] for some in wanted], device=model.device)

    def of_each(logits: Tensor, part: slice) -> Tensor:
        log_p = wide(logits).log_softmax(-1).gather(-1, targets[part])
        return torch.cat([log_p, (logits.argmax(-1, keepdim=True) == targets[part]).to(log_p.dtype)], dim=1)

    positions = torch.tensor(list(places), device=model.device)
    read = heads.read(model, {"input_ids": ids, "use_cache": False}, positions, Each(of_each, buffers=2)).logits
    if read.isnan().any():
        raise BulwarkError(NOT_NUMBERS)
    values = read.tolist()
    return [
        LogLikelihood(
            math.fsum(values[place][number] for place, number in chosen),
            all(values[place][most + number] for place, number in chosen),
        )
        for chosen in spots
    ]
