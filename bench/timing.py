"""Two pieces of work timed in turn, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """One comparison: what was measured, the ratio over the rounds, and what is wanted of it."""

    what: str
    median: float
    low: float
    high: float
    wanted: str = ""


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process in one call, which other processes disturb less than the time on the wall."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ratio(
    what: str,
    above: Callable[[], object],
    below: Callable[[], object],
    wanted: str = "",
    rounds: int = 7,
    clock: Callable[[Callable[[], object]], float] = seconds,
) -> Ratio:
    """The time of `above` over that of `below`, each once per round after a warm-up, in alternating order.

    clock: does a piece of work and returns its seconds.
    """
    above(), below()
    ratios = []
    for number in range(rounds):
        if number % 2:
            under, over = clock(below), clock(above)
        else:
            over, under = clock(above), clock(below)
        ratios.append(over / under)
    return Ratio(what, statistics.median(ratios), min(ratios), max(ratios), wanted)
