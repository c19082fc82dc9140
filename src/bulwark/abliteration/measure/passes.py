"""Forward passes over many prompts: longest first, in batches within a token budget, halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bulwark.errors import BulwarkError
from bulwark.models.generation import CPU_TOKEN_BUDGET, free_memory, is_out_of_memory, progress
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

GPU_TOKEN_BUDGET = 2**15


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right, where causal attention does not see it, so that there is no mask.

    places: of the rows in the sequence that was given. ids: [rows, longest]. last: [rows], where each prompt ends.
    """

    places: list[int]
    ids: Tensor
    last: Tensor


def over(
    prompts: Sequence[Prompt],
    work: Callable[[Batch], None],
    pad_id: int,
    device: torch.device,
    *,
    token_budget: int | None = None,
    copies: int = 1,
    title: str = "prompts",
    shown: bool = False,
) -> None:
    """Give all prompts to `work`, which must leave nothing behind of a batch for which memory ran out.

    token_budget: rows times longest row of a batch. copies: rows that `work` makes of each prompt, all in one batch.
    shown: tell the progress, where this is the only thing that happens.
    Raises BulwarkError when memory does not suffice for one prompt.
    """
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].ids))
    budget = token_budget or (CPU_TOKEN_BUDGET if torch.device(device).type == "cpu" else GPU_TOKEN_BUDGET)
    done = 0
    with progress(len(order), 0) if shown else nullcontext(lambda count: None) as advance:
        while done < len(order):
            longest = len(prompts[order[done]].ids)
            places = order[done : done + max(1, budget // (longest * copies))]
            ids = torch.full((len(places), longest), pad_id, dtype=torch.long)
            for row, place in enumerate(places):
                ids[row, : len(prompts[place].ids)] = torch.tensor(prompts[place].ids)
            last = torch.tensor([len(prompts[place].ids) - 1 for place in places])
            try:
                work(Batch(places, ids.to(device), last.to(device)))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(places) == 1:
                    raise BulwarkError(
                        f"Out of memory with a single prompt of {longest} tokens ({title}). Use bfloat16, fewer trials "
                        "per batch, or a device with more memory."
                    ) from None
                budget = len(places) * longest * copies // 2
                log.warning("Out of memory with %d prompts; the token budget is now %d", len(places), budget)
                free_memory()
                continue
            done += len(places)
            advance(len(places))
