"""Schedules of the learning rate: the factor of each optimizer step, from the settings alone.

Each begins with a linear warm-up from 0 over W steps, in which step k (from 0) has the factor k / W. After it, with
p = (k - W) / (N - W) of N steps and the floor f = min_learning_rate / learning_rate:

    constant          1
    linear            1 - p
    cosine            f + (1 - f) · (1 + cos(π p)) / 2
    cosine_restarts   f + (m - f) · (1 + cos(π t / T)) / 2, with m = cycle_decay^i

The last is SGDR (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5): t of the T steps of cycle i are over, the first
cycle has T = cycle_steps, each further one cycle_mul times as many. Cycles are counted from the end of the warm-up.
Constant, linear and cosine without a floor are those of the library transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bulwark.training.settings import TrainingSettings


def factor_of(settings: TrainingSettings, total: int) -> Callable[[int], float]:
    """The factor on `settings.learning_rate` as a function of the optimizer step, of a training of `total` steps.

    Schedule-free AdamW has none and warms up by itself, so that its factor is 1.
    """
    if settings.optimizer == "schedulefree_adamw":
        return lambda step: 1.0
    warmup = settings.warmup(total)
    floor = settings.min_learning_rate / settings.learning_rate

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "linear":
            return max(0.0, (total - step) / max(1, total - warmup))
        if settings.schedule == "cosine":
            progress = (step - warmup) / max(1, total - warmup)
            return floor + (1.0 - floor) * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        within, length, cycle = cycle_of(step - warmup, settings.cycle_steps or 1, settings.cycle_mul)
        highest = max(floor, settings.cycle_decay**cycle)
        return floor + (highest - floor) * 0.5 * (1.0 + math.cos(math.pi * within / length))

    return factor


def cycle_of(step: int, first: int, mul: float) -> tuple[float, float, int]:
    """Where a step (from 0) lies among cycles of which the first has `first` steps and each next `mul` times as many.

    Returns the steps of the cycle that are over, its length, and its number from 0.
    """
    start, length, number = 0.0, float(first), 0
    while step >= start + length:
        start, length, number = start + length, length * mul, number + 1
    return step - start, length, number
