"""Greedy answers of several trials at once, each stopped as soon as its verdict is certain.

A marker that stands in what is written so far stands in the whole answer, so a row whose refusal is decided need not be
written to its end: the verdict is exactly that of the whole answer. Rows that have ended leave the batch, its cache
included. All rows of a batch read the base weights once per token, whatever trial they belong to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bulwark.abliteration.edit.hooks import Rows
from bulwark.abliteration.measure.passes import GPU_TOKEN_BUDGET
from bulwark.errors import BulwarkError
from bulwark.models.generation import CPU_TOKEN_BUDGET, default_token_budget, free_memory, is_out_of_memory
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

LOOK_EVERY = 4  # tokens between two looks whether a verdict is certain; looking costs decoding every row's text
COMPACT_AT = 0.75  # a batch is made smaller when this share of its rows, or less, is still being written


@dataclass(frozen=True)
class Asked:
    """A prompt put to the model of one trial. key: of the caller's."""

    key: Any
    trial: int
    prompt: Prompt


@dataclass(frozen=True)
class Written:
    """What was written, as far as it was needed. tokens: generated ones. decided: it was stopped by its verdict."""

    text: str
    tokens: int
    decided: bool
    ended: bool


class Writer:
    """Writes answers with one model. certain(text): whether the verdict on an answer that begins so is certain."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_ids: Sequence[int],
        pad_id: int,
        max_new_tokens: int,
        token_budget: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.pad_id = model, tokenizer, pad_id
        self.stop_ids = torch.tensor(list(stop_ids), device=model.device)
        self.max_new_tokens = max_new_tokens
        self.token_budget = token_budget or _budget(model)

    def write(
        self, asked: Sequence[Asked], rows: Rows | None = None, certain: Callable[[str], bool] | None = None
    ) -> list[Written]:
        """Answer all, in the given order. rows: of the edited model, told which trial each row belongs to.

        Raises BulwarkError when memory does not suffice for one prompt, or logits are not numbers.
        """
        order = sorted(range(len(asked)), key=lambda place: -len(asked[place].prompt.ids))
        written: list[Written | None] = [None] * len(asked)
        budget = self.token_budget
        done = 0
        while done < len(order):
            width = len(asked[order[done]].prompt.ids) + self.max_new_tokens
            places = order[done : done + max(1, budget // width)]
            try:
                found = self._batch([asked[place] for place in places], rows, certain)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(places) == 1:
                    raise BulwarkError(
                        f"Out of memory with a single prompt of {width - self.max_new_tokens} tokens. Lower "
                        "search.max_new_tokens, use bfloat16, or a device with more memory."
                    ) from None
                budget = self.token_budget = len(places) * width // 2
                log.warning("Out of memory with %d rows; the token budget is now %d", len(places), budget)
                free_memory()
                continue
            for place, one in zip(places, found, strict=True):
                written[place] = one
            done += len(places)
        return written

    @torch.inference_mode()
    def _batch(self, asked: Sequence[Asked], rows: Rows | None, certain: Callable[[str], bool] | None) -> list[Written]:
        """One batch, padded on the left."""
        model, device = self.model, self.model.device
        longest = max(len(one.prompt.ids) for one in asked)
        ids = torch.full((len(asked), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros(len(asked), longest, dtype=torch.long)
        for row, one in enumerate(asked):
            ids[row, longest - len(one.prompt.ids) :] = torch.tensor(one.prompt.ids)
            mask[row, longest - len(one.prompt.ids) :] = 1
        # Room for every new token at once: the mask of a step is a view.
        mask = torch.cat([mask, torch.ones(len(asked), self.max_new_tokens, dtype=torch.long)], dim=1).to(device)
        positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
        trials = torch.tensor([one.trial for one in asked], device=device)
        alive = torch.arange(len(asked), device=device)  # numbers of the rows that are still written
        tokens = torch.full((len(asked), self.max_new_tokens), self.pad_id, dtype=torch.long, device=device)
        lengths = torch.full((len(asked),), self.max_new_tokens, dtype=torch.long, device=device)
        ended = torch.zeros(len(asked), dtype=torch.bool, device=device)
        decided = torch.zeros(len(asked), dtype=torch.bool, device=device)
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        step_ids = ids.to(device)
        if rows is not None:
            rows.are(trials)
        for step in range(self.max_new_tokens):
            logits = model(
                input_ids=step_ids,
                attention_mask=mask[:, : longest + step],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if bool(torch.isnan(logits).any()):
                raise BulwarkError(
                    "The model's logits are not numbers (NaN). Its weights are broken, or the number type overflows: "
                    "try bfloat16 or float32."
                )
            chosen = logits.argmax(-1)
            tokens[alive, step] = chosen
            stops = torch.isin(chosen, self.stop_ids)
            going = ~stops & ~ended[alive] & ~decided[alive]
            lengths[alive[stops & ~ended[alive] & ~decided[alive]]] = step + 1
            ended[alive] |= stops & ~decided[alive]
            if certain is not None and (step + 1) % LOOK_EVERY == 0:
                going &= ~self._certain(alive, going, tokens, step + 1, certain, lengths, decided)
            count = int(going.sum())
            if not count:
                break
            if count <= COMPACT_AT * len(alive):
                alive, trials, mask = alive[going], trials[going], mask[going]
                cache.batch_select_indices(going.nonzero()[:, 0])
                positions, chosen = positions[going], chosen[going]
                if rows is not None:
                    rows.are(trials)
            step_ids, positions = chosen[:, None], positions[:, -1:] + 1
        texts = self._texts(tokens, lengths, ended)
        facts = zip(texts, lengths.tolist(), decided.tolist(), ended.tolist(), strict=True)
        return [Written(*fact) for fact in facts]

    def _certain(
        self,
        alive: Tensor,
        going: Tensor,
        tokens: Tensor,
        length: int,
        certain: Callable[[str], bool],
        lengths: Tensor,
        decided: Tensor,
    ) -> Tensor:
        """Which of the rows `alive` have a certain verdict; notes it in `lengths` and `decided`."""
        candidates = alive[going]
        texts = self._decoded(tokens[candidates, :length].tolist())
        known = torch.tensor([certain(text) for text in texts], dtype=torch.bool, device=alive.device)
        settled = torch.zeros_like(going)
        settled[going] = known
        lengths[alive[settled]] = length
        decided[alive[settled]] = True
        return settled

    def _texts(self, tokens: Tensor, lengths: Tensor, ended: Tensor) -> list[str]:
        """The answers' texts, without the stop token."""
        kept = (lengths - ended.long()).tolist()
        return [text.strip() for text in self._decoded([r[:n] for r, n in zip(tokens.tolist(), kept, strict=True)])]

    def _decoded(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _budget(model: Any) -> int:
    if model.device.type == "cpu":
        return CPU_TOKEN_BUDGET
    return max(GPU_TOKEN_BUDGET, default_token_budget(model))
