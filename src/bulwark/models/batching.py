"""Batches for every pass over a model: longest first, within a token budget that is halved when memory runs out.

Sorting by length wastes little on padding, and memory runs out at the start if it ever does. `in_batches` is the loop,
`over_prompts` the loop for forward passes over prompts, `progress` what is shown meanwhile.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from bulwark import interrupts
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

CPU_TOKEN_BUDGET = 2**14
GPU_TOKEN_BUDGET = 2**15  # of passes without a cache, which gain little from more
MOST_CACHED_TOKENS = 2**20
_SECONDS_BETWEEN_LOG_LINES = 30
NOT_NUMBERS = (
    "The model's logits are not numbers (NaN). Its weights are broken, or the number type overflows: "
    "try bfloat16 or float32."
)


@dataclass
class Budget:
    """Rows times the longest row of a batch, in tokens. Shared by several passes, a halving holds for all of them."""

    tokens: int


def in_batches(
    lengths: Sequence[int],
    work: Callable[[list[int]], None],
    budget: Budget | int,
    describe: Callable[[int], str],
    advice: str = "",
) -> None:
    """Give all items (by number, longest first) to `work`, batch by batch.

    lengths: tokens that each item needs. work: must leave nothing behind of a batch for which memory ran out, because
    its items are tried again, half as many at a time. describe, advice: what the error message calls an item, and what
    it recommends. Within a resumable work it is left between two batches if the process has been told to end.
    Raises BulwarkError when memory does not suffice for a single item.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
    done = 0
    while done < len(order):
        longest = lengths[order[done]]
        batch = order[done : done + max(1, budget.tokens // longest)]
        try:
            work(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise BulwarkError(
                    f"Out of memory with a single {describe(batch[0])}. {advice}Use bfloat16, or a device with more "
                    "memory."
                ) from None
        else:
            done += len(batch)
            if done < len(order):
                interrupts.leave_if_told()
            continue
        # Out of the handler: its traceback would keep the batch's tensors alive.
        budget.tokens = len(batch) * longest // 2
        log.warning("Out of memory with %d rows; the token budget is now %d", len(batch), budget.tokens)
        free_memory()


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right, where causal attention does not see it, so that there is no mask.

    places: numbers of the rows in the sequence that was given. ids: [rows, longest]. last: [rows], where each ends.
    """

    places: list[int]
    ids: Tensor
    last: Tensor


def over_prompts(
    prompts: Sequence[Prompt],
    work: Callable[[Batch], None],
    pad_id: int,
    device: torch.device,
    *,
    token_budget: int | None = None,
    copies: int = 1,
    title: str = "prompt",
    shown: bool = False,
) -> None:
    """Give all prompts to `work` as `in_batches` does.

    token_budget: rows times longest row of a batch. copies: rows that `work` makes of each prompt, all in one batch.
    title: what the error message calls a prompt. shown: show the progress, where this is all that happens.
    """

    def padded_work(places: list[int]) -> None:
        ids = padded([prompts[place].ids for place in places], pad_id)
        last = torch.tensor([len(prompts[place].ids) - 1 for place in places])
        work(Batch(places, ids.to(device), last.to(device)))
        advance(len(places))

    with progress(len(prompts), 0) if shown else nullcontext(lambda count: None) as advance:
        in_batches(
            [len(prompt.ids) * copies for prompt in prompts],
            padded_work,
            token_budget or pass_token_budget(device),
            lambda place: f"{title} of {len(prompts[place].ids)} tokens",
            "Take fewer trials per batch. " if copies > 1 else "",
        )


def padded(rows: Sequence[Sequence[int]], pad_id: int, left: bool = False) -> Tensor:
    """The ids as one tensor [rows, longest], padded on the right or on the left."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    for number, row in enumerate(rows):
        start = longest - len(row) if left else 0
        ids[number, start : start + len(row)] = torch.tensor(row)
    return ids


def pass_token_budget(device: torch.device) -> int:
    """The token budget of forward passes without a cache."""
    return CPU_TOKEN_BUDGET if torch.device(device).type == "cpu" else GPU_TOKEN_BUDGET


def cache_token_budget(model: Any) -> int:
    """Tokens whose keys and values fill two thirds of the free device memory; a fixed number on a CPU.

    Of a model on several GPUs each holds those of its blocks, and the fullest decides.
    """
    if model.device.type != "cuda":
        return CPU_TOKEN_BUDGET
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_block = 2 * heads * size * model.dtype.itemsize
    blocks = Counter(next(block.parameters()).device for block in blocks_of(model))
    free = min(torch.cuda.mem_get_info(device)[0] / count for device, count in blocks.items())
    return max(1, min(MOST_CACHED_TOKENS, int(free * 2 / 3 / bytes_per_block)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error says that memory ran out, on a GPU or on the CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def free_memory() -> None:
    """Collect garbage and return cached blocks to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def progress(total: int, done: int, what: str = "answers", unit: str = "records") -> Iterator[Callable[[int], None]]:
    """A bar with the rate (records/s) and the time left on a terminal; elsewhere a log line now and then."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    started = last_line = time.monotonic()
    finished = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal finished, last_line
            finished += count
            now = time.monotonic()
            rate = finished / max(now - started, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s")
            if not console.is_terminal and now - last_line >= _SECONDS_BETWEEN_LOG_LINES:
                last_line = now
                left = (total - done - finished) / rate
                log.info("%d of %d %s, %.1f %s/s, %.0f s left", done + finished, total, what, rate, unit, left)

        yield advance
