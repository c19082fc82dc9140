"""Batched log-likelihoods of given continuations: length-sorted, within a token budget, resumable.

Beside `generation`, the other way of asking a model. Requests whose input is the same share one row, so that a
question with four options of one token costs one pass and not four. Longer options after the same context share what is
cached of it: the context is read once, and then the options one after another. Only the positions that predict a
continuation go through the output embedding.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from bulwark.errors import BulwarkError
from bulwark.models.anatomy import positions_of
from bulwark.models.answers import Answer, Partial
from bulwark.models.batching import NOT_NUMBERS, Budget, cache_token_budget, in_batches, padded, progress
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
    for number, request in enumerate(requests):
        earlier = kept.answers.get((request.key, digests[number]))
        if earlier is not None:
            found[number] = LogLikelihood(*json.loads(earlier.response))
    if found:
        log.info("%d of %d log-likelihoods are there already", len(found), len(requests))
    on_cpu = model.device.type == "cpu"
    budget = Budget(token_budget or (CPU_TOKENS if on_cpu else min(MOST_TOKENS, cache_token_budget(model))))

    def read(rows: Sequence[tuple[tuple[int, ...], list[int]]], scored: Scorer, copies: int) -> None:
        """copies: of the keys and values of a row that a pass holds."""

        def work(batch: list[int]) -> None:
            numbers = [rows[item][1] for item in batch]
            results = scored(
                model, [rows[item][0] for item in batch], [[requests[n] for n in own] for own in numbers], pad_id
            )
            done = [number for own in numbers for number in own]
            for number, result in zip(done, results, strict=True):
                found[number] = result
                request, line = requests[number], json.dumps([result.value, result.greedy])
                kept.append(Answer(request.key, line, len(request.targets), "stop", False), digests[number])
            kept.flush()
            advance(len(done))

        in_batches(
            [copies * len(ids) for ids, _ in rows],
            work,
            budget,
            lambda row: f'row ("{requests[rows[row][1][0]].key}") of {len(rows[row][0])} tokens',
            "Take fewer examples in front. ",
        )

    contexts, whole = _rows(model, requests, [number for number in range(len(requests)) if number not in found])
    with progress(len(requests), len(found)) as advance, kept, kept.resumable(found, requests, "log-likelihoods"):
        read(contexts, _scored_after, 1 if on_cpu else 2)
        read(whole, _scored, 1)
    return [found[number] for number in range(len(requests))]


Scorer = Callable[[Any, Sequence[tuple[int, ...]], Sequence[Sequence[Continuation]], int], list[LogLikelihood]]
Rows = list[tuple[tuple[int, ...], list[int]]]


def _rows(model, requests: Sequence[Continuation], pending: Sequence[int]) -> tuple[Rows, Rows]:
    """(contexts that are read once for several continuations, whole rows), each with the numbers of its requests."""
    after: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for number in pending:
        ids = tuple(requests[number].ids)
        after.setdefault(ids[: _context(requests[number])], {}).setdefault(ids, []).append(number)
    sharing = any(len(inputs) > 1 for inputs in after.values()) and _keeps_contexts(model)
    contexts: Rows = []
    whole: dict[tuple[int, ...], list[int]] = {}
    for context, inputs in after.items():
        if sharing and len(inputs) > 1 and 2 * len(context) > max(map(len, inputs)):
            contexts.append((context, [number for numbers in inputs.values() for number in numbers]))
        else:
            for ids, numbers in inputs.items():
                whole.setdefault(ids, []).extend(numbers)
    return contexts, list(whole.items())


def _context(request: Continuation) -> int:
    """Tokens of a request's input before the continuation."""
    return len(request.ids) - len(request.targets) + 1


def _keeps_contexts(model) -> bool:
    """Whether what a model caches of a context is keys and values, which several continuations can follow."""
    accepted = inspect.signature(model.forward).parameters
    if "past_key_values" not in accepted or getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@torch.inference_mode()
def _scored_after(
    model, contexts: Sequence[tuple[int, ...]], requests: Sequence[Sequence[Continuation]], pad_id: int
) -> list[LogLikelihood]:
    """One pass over `contexts`, padded on the left, and one for each of the longest list of continuations.

    The results context by context. A continuation's pass leaves the cache of the contexts as it is.
    """
    device = model.device
    ids = padded(contexts, pad_id, left=True).to(device)
    longest, lengths = ids.shape[1], torch.tensor([len(context) for context in contexts], device=device)
    mask = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
    reach = positions_of(model) or sys.maxsize
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def passed(ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, wanted: Wanted) -> Any:
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if takes_positions:
            inputs["position_ids"] = positions
        return _read(model, inputs, wanted)

    cache = DynamicCache(config=model.config)
    firsts: Wanted = {
        row * longest + longest - 1: list(dict.fromkeys(request.targets[0] for request in own))
        for row, own in enumerate(requests)
    }
    read = passed(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache, firsts)
    values = [[[read[row * longest + longest - 1, r.targets[0]]] for r in own] for row, own in enumerate(requests)]
    for option in range(max(map(len, requests))):
        asked = [own[option] if option < len(own) else None for own in requests]
        tails = [request.ids[_context(request) :] if request else [] for request in asked]
        if not any(tails):
            continue
        more = padded([tail or [pad_id] for tail in tails], pad_id).to(device)
        width = more.shape[1]
        wanted: Wanted = {
            row * width + place: [target]
            for row, request in enumerate(asked)
            for place, target in enumerate(request.targets[1:] if request else [])
        }
        positions = (lengths[:, None] + torch.arange(width, device=device)).clamp(max=reach - 1)  # of padding
        read = passed(more, torch.cat([mask, torch.ones_like(more)], dim=1), positions, _copy(cache), wanted)
        for (place, _), value in read.items():
            values[place // width][option].append(value)
    return [_summed(of_request) for own in values for of_request in own]


def _copy(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow by itself. It has the same tensors, which no layer changes in place."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


@torch.inference_mode()
def _scored(
    model, rows: Sequence[tuple[int, ...]], requests: Sequence[Sequence[Continuation]], pad_id: int
) -> list[LogLikelihood]:
    """One pass over `rows`, padded on the right where causal attention cannot see it; the results row by row.

    What several requests of a row have at one position shares its logits.
    """
    ids = padded(rows, pad_id).to(model.device)
    wanted: Wanted = {}
    spots: list[list[tuple[int, int]]] = []  # of each request, its targets and where they are read
    for number, row in enumerate(rows):
        for request in requests[number]:
            start = number * ids.shape[1] + len(row) - len(request.targets)
            spots.append(list(enumerate(request.targets, start)))
            for place, target in spots[-1]:
                of_place = wanted.setdefault(place, [])
                if target not in of_place:
                    of_place.append(target)
    read = _read(model, {"input_ids": ids, "use_cache": False}, wanted)
    return [_summed([read[spot] for spot in of_request]) for of_request in spots]


Wanted = dict[int, list[int]]
"""By place in the flattened [rows·longest] of a pass, the targets whose log-probabilities are read there."""


def _read(model, inputs: dict[str, Any], wanted: Wanted) -> dict[tuple[int, int], LogLikelihood]:
    """A pass; by place and target, the target's log-probability and whether it is the likeliest token.

    Raises BulwarkError for logits that are not numbers.
    """
    most = max(map(len, wanted.values()))
    targets = torch.tensor([[*some, *[some[0]] * (most - len(some))] for some in wanted.values()], device=model.device)

    def of_each(logits: Tensor, part: slice) -> Tensor:
        log_p = wide(logits).log_softmax(-1).gather(-1, targets[part])
        return torch.cat([log_p, (logits.argmax(-1, keepdim=True) == targets[part]).to(log_p.dtype)], dim=1)

    positions = torch.tensor(list(wanted), device=model.device)
    read = heads.read(model, inputs, positions, Each(of_each, buffers=2)).logits
    if read.isnan().any():
        raise BulwarkError(NOT_NUMBERS)
    return {
        (place, target): LogLikelihood(values[number], bool(values[most + number]))
        for (place, some), values in zip(wanted.items(), read.tolist(), strict=True)
        for number, target in enumerate(some)
    }


def _summed(tokens: Sequence[LogLikelihood]) -> LogLikelihood:
    """Of a continuation, from those of its tokens."""
    return LogLikelihood(math.fsum(token.value for token in tokens), all(token.greedy for token in tokens))
