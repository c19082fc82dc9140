"""Batched answers: length-sorted, within a token budget, resumable by record; finished rows leave their batch.

Every finished answer is appended to a partial file, so a killed job continues where it stopped; one that is told to
end stops between two tokens and keeps the answers of its batch that are finished. An answer depends on
its prompt, the decoding settings, the seed and the record's key, not on the other records: greedily the same for every
batch size (in float32), and sampled by numbers that belong to the record.

`stop_when` ends an answer early whose verdict is certain: a marker that stands in what is written so far stands in the
whole answer, so the verdict is exactly that of the whole answer.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from bulwark import interrupts
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import positions_of
from bulwark.models.answers import Answer, Partial
from bulwark.models.batching import NOT_NUMBERS, Budget, cache_token_budget, in_batches, padded, progress
from bulwark.models.decoding import Decoding
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

LOOK_EVERY = 4  # tokens between two calls of `stop_when`, each of which decodes every row's text
COMPACT_AT = 0.75  # finished rows leave a batch when this share of its rows, or less, is still being written


class Decoded(NamedTuple):
    """Generated ids of one row, the stop token included, and how they ended (see `Answer.finish`)."""

    ids: list[int]
    finish: str


def generate(
    model,
    prompts: Sequence[tuple[str, Prompt]],
    decoding: Decoding,
    *,
    tokenizer,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int = 0,
    partial: Path | None = None,
    fingerprint: str = "",
    token_budget: Budget | int | None = None,
    stop_when: Callable[[str], bool] | None = None,
    on_rows: Callable[[list[int]], None] | None = None,
    ids: dict[str, list[int]] | None = None,
    shown: bool = True,
) -> list[Answer]:
    """Answer every (key, prompt), in the given order.

    model: a causal LM whose input embedding is a RoleEmbedding; generation options of its own are not used.
    stop_ids, pad_id: of the prompt builder. seed: for sampling. token_budget: rows times (longest prompt + new
    tokens) of a batch; None asks the device's free memory. partial: where finished answers are kept; those of a
    file with another `fingerprint` (what decides the answers besides prompts, decoding, seed and stop ids: the
    checkpoint's digest, the number type) are discarded. The caller removes the file once its own output is written.
    stop_when(text): whether no more is needed of an answer that begins so; asked every `LOOK_EVERY` tokens.
    on_rows(numbers): called before a pass whose rows are not those of the one before, with their numbers in `prompts`.
    ids: filled with the generated ids of every key but those kept in `partial`, without the stop token. shown: show the
    progress.

    Raises BulwarkError for duplicate keys, prompts above `max_prompt_tokens`, logits that are not numbers, and when
    memory does not suffice for a single record.
    """
    _check(prompts, decoding)
    kept = Partial(partial, json.dumps([fingerprint, decoding.model_dump(), seed, list(stop_ids)]))
    digests = [kept.digest(prompt.ids) for _, prompt in prompts]
    answers = {
        key: kept.answers[key, digest]
        for (key, _), digest in zip(prompts, digests, strict=True)
        if (key, digest) in kept.answers
    }
    pending = [number for number, (key, _) in enumerate(prompts) if key not in answers]
    if answers:
        log.info("%d of %d answers are there already", len(answers), len(prompts))

    def texts(rows: Sequence[Sequence[int]]) -> list[str]:
        if not rows:  # of which tokenizers make one text
            return []
        return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def work(batch: list[int]) -> None:
        numbers = [pending[item] for item in batch]
        keys, asked = zip(*(prompts[number] for number in numbers), strict=True)
        rows = decode(
            model,
            asked,
            max_new_tokens=decoding.max_new_tokens,
            stop_ids=stop_ids,
            pad_id=pad_id,
            choose=Sampler(decoding, keys, seed, model.device) if decoding.do_sample else None,
            stop_when=stop_when and (lambda rows: [stop_when(text) for text in texts(rows)]),
            on_rows=on_rows and (lambda rows: on_rows([numbers[row] for row in rows.tolist()])),
        )
        done = [(number, row) for number, row in zip(numbers, rows, strict=True) if row is not None]
        kept_ids = [row.ids[: -1 if row.finish == "stop" else None] for _, row in done]
        for (number, row), own, text in zip(done, kept_ids, texts(kept_ids), strict=True):
            key, prompt = prompts[number]
            if ids is not None:
                ids[key] = own
            answers[key] = Answer(key, text.strip(), len(row.ids), row.finish, prompt.truncated)
            kept.append(answers[key], digests[number])
        kept.flush()
        advance(len(done))
        if len(done) < len(batch):
            interrupts.leave_if_told()

    training = model.training
    if training:
        model.eval()
    showing = progress(len(prompts), len(answers)) if shown else nullcontext(lambda count: None)
    try:
        with showing as advance, kept, kept.resumable(answers, prompts):
            in_batches(
                [len(prompts[number][1].ids) + decoding.max_new_tokens for number in pending],
                work,
                token_budget or (cache_token_budget(model) if pending else 0),
                lambda item: (
                    f'prompt ("{prompts[pending[item]][0]}") of {len(prompts[pending[item]][1].ids)} tokens and up to '
                    f"{decoding.max_new_tokens} new ones"
                ),
                "Lower max_prompt_tokens or max_new_tokens. ",
            )
    finally:
        if training:
            model.train()
    return [answers[key] for key, _ in prompts]


@torch.inference_mode()
def decode(
    model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    choose: Callable[[Tensor, int, Tensor], Tensor] | None = None,
    stop_when: Callable[[list[list[int]]], list[bool]] | None = None,
    on_rows: Callable[[Tensor], None] | None = None,
) -> list[Decoded | None]:
    """Generate for one batch of prompts, padded on the left; rows that have finished leave it, its cache included.

    No answer goes past the positions that the model knows: it ends there as at `max_new_tokens`. None for a row that
    was still being written when the process was told to end (see `interrupts.leaving`).
    choose(logits [rows, vocabulary], step, numbers of the rows [rows]): the next tokens [rows]; None takes the
    likeliest. stop_when(ids of rows): which of them need no more. on_rows(numbers): called before the first pass and
    when rows have left. Raises BulwarkError for logits that are not numbers.
    """
    device, count = model.device, len(prompts)
    # An answer ends where the positions do that the model knows.
    reach = positions_of(model) or sys.maxsize
    most = [max(1, min(max_new_tokens, reach - len(prompt.ids))) for prompt in prompts]
    max_new_tokens = max(most)
    ids = padded([prompt.ids for prompt in prompts], pad_id, left=True).to(device)
    longest = ids.shape[1]
    # Room for every new token at once: the mask of a step is a view.
    mask = torch.ones(count, longest + max_new_tokens, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        mask[row, : longest - len(prompt.ids)] = 0
    mask = mask.to(device)
    positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
    stops = torch.tensor(list(stop_ids), device=device)
    rows = torch.arange(count, device=device)  # numbers of the rows in the batch
    tokens = torch.full((count, max_new_tokens), pad_id, dtype=torch.long, device=device)
    lengths = torch.tensor(most, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    decided = torch.zeros(count, dtype=torch.bool, device=device)
    accepted = inspect.signature(model.forward).parameters
    cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    cache = None
    unfinished: set[int] = set()
    if on_rows is not None:
        on_rows(rows)
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask[:, : longest + step],
            use_cache=True,
            **{cache_name: cache},
            **({"position_ids": positions} if "position_ids" in accepted else {}),
            **last_only,
        )
        cache = getattr(output, cache_name)
        logits = output.logits[:, -1]
        if bool(torch.isnan(logits).any()):  # the likeliest of NaNs would silently be token 0
            raise BulwarkError(NOT_NUMBERS)
        chosen = logits.argmax(-1) if choose is None else choose(logits, step, rows)
        tokens[rows, step] = chosen
        going = ~(ended[rows] | decided[rows]) & (step < lengths[rows])
        stopping = going & torch.isin(chosen, stops)
        ended[rows[stopping]] = True
        lengths[rows[stopping]] = step + 1
        going &= ~stopping
        if stop_when is not None and (step + 1) % LOOK_EVERY == 0 and bool(going.any()):
            candidates = rows[going]
            known = torch.tensor(stop_when(tokens[candidates, : step + 1].tolist()), dtype=torch.bool, device=device)
            decided[candidates[known]] = True
            lengths[candidates[known]] = step + 1
            going &= ~decided[rows]
        left = int(going.sum())
        if not left or step + 1 == max_new_tokens:
            break
        if interrupts.leaving():
            unfinished = set(rows[going].tolist())
            break
        if left <= COMPACT_AT * len(rows) and _select_rows(cache, going.nonzero()[:, 0]):
            rows, mask, positions, chosen = rows[going], mask[going], positions[going], chosen[going]
            if on_rows is not None:
                on_rows(rows)
        ids, positions = chosen[:, None], (positions[:, -1:] + 1).clamp(max=reach - 1)
    finish = [
        "stop" if e else "decided" if d else "length" for e, d in zip(ended.tolist(), decided.tolist(), strict=True)
    ]
    return [
        None if number in unfinished else Decoded(row[:length], how)
        for number, (row, length, how) in enumerate(zip(tokens.tolist(), lengths.tolist(), finish, strict=True))
    ]


def stop_ids_of(model, tokenizer) -> list[int]:
    """The ids that end an answer by the model's generation configuration (`eos_token_id`, a number or a list).

    Of a configuration that transformers has derived from config.json, whose defaults may be those of another tokenizer,
    only the ids of added tokens count.
    """
    config = model.generation_config
    given = config.eos_token_id
    ids = [] if given is None else [given] if isinstance(given, int) else list(given)
    if getattr(config, "_from_model_config", False):
        return [number for number in ids if number in tokenizer.added_tokens_decoder]
    return ids


def _select_rows(cache: Any, rows: Tensor) -> bool:
    """Drop all other rows from the cache; False if it cannot, so that finished rows must stay in their batch.

    `reorder_cache` with fewer rows than there are, because `batch_select_indices` is missing for the layers of hybrids
    with linear attention or convolution, or forgets their states.
    """
    if type(cache) is not DynamicCache or not all(hasattr(layer, "reorder_cache") for layer in cache.layers):
        return False
    cache.reorder_cache(rows)
    return True


class Sampler:
    """Chooses the token in which a uniform number falls that depends on seed, record key and step alone.

    The distribution is softmax(logits / temperature), cut to the `top_k` likeliest tokens (and those as likely as the
    last of them) and then, of what is left, to the smallest set of tokens with mass `top_p`: transformers' order.
    """

    def __init__(self, decoding: Decoding, keys: Sequence[str], seed: int, device: torch.device):
        self._temperature, self._top_k, self._top_p = decoding.temperature, decoding.top_k, decoding.top_p
        rows = [self._numbers(seed, key, decoding.max_new_tokens) for key in keys]
        self._uniform = torch.stack(rows).to(device)  # [rows, new tokens]

    def __call__(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        logits = logits.float() / self._temperature
        if self._top_k is not None:
            least = logits.topk(min(self._top_k, logits.shape[1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = torch.softmax(logits, dim=-1)
        if self._top_p < 1:
            ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
            tail = ordered.cumsum(-1) - ordered >= self._top_p
            probabilities = probabilities.masked_fill(tail.gather(-1, places.argsort(-1)), 0)
        reached = probabilities.double().cumsum(-1)
        drawn = self._uniform[rows, step, None] * reached[:, -1:]
        return torch.searchsorted(reached, drawn, right=True).clamp(max=logits.shape[1] - 1)[:, 0]

    @staticmethod
    def _numbers(seed: int, key: str, count: int) -> Tensor:
        digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        return torch.rand(count, generator=generator, dtype=torch.float64)


def _check(prompts: Sequence[tuple[str, Prompt]], decoding: Decoding) -> None:
    keys = [key for key, _ in prompts]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BulwarkError(f'Two prompts have the key "{twice}". Give every record its own id.')
    limit = decoding.max_prompt_tokens
    for key, prompt in prompts:
        if limit is not None and len(prompt.ids) > limit:
            raise BulwarkError(
                f'The prompt "{key}" has {len(prompt.ids)} tokens, above max_prompt_tokens = {limit}. '
                "Give the prompt builder max_tokens, so that it cuts the data."
            )
