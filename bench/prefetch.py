"""What ZeRO-3's prefetch does for detectors: two processes (gloo), delta-loss that injects, three passes a micro-batch.

The same training in turn with an order of its own for each kind of pass (as trainings have it), with one order for all
(DeepSpeed's, which is forgotten in every step), and with orders that hold but nothing fetched ahead. Two processes on
one machine exchange parameters through its memory; where a network lies between them, more is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from bench import steering
from bench.timing import Ratio
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.policies import DeltaLoss
from bulwark.steering.screening.screened import Screened
from bulwark.steering.screening.traces import Traces
from bulwark.training import engine

RANKS, ROUNDS = 2, 3
HIDDEN, LENGTH = 64, 32  # small, so that fetching is not lost in arithmetic
WAYS = ("an order for each pass", "one order for all", "no prefetch")


def run() -> Iterator[Ratio]:
    """Seconds, and CPU seconds of both processes, of the other ways over those of an order for each pass."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(RANKS) as pool:
        found = pool.starmap(_rank, [(rank, folder) for rank in range(RANKS)], chunksize=1)
    walls = [{way: max(one[number][way][0] for one in found) for way in WAYS} for number in range(ROUNDS)]
    busy = [{way: sum(one[number][way][1] for one in found) for way in WAYS} for number in range(ROUNDS)]
    forgotten = {way: found[0][0][way][2] for way in WAYS}
    for way in WAYS[1:]:
        for what, seconds in (("seconds", walls), ("CPU seconds", busy)):
            ratios = [of_round[way] / of_round[WAYS[0]] for of_round in seconds]
            yield Ratio(
                f"delta_loss, inject, ZeRO-3 on two ranks, {what}: {way} (forgotten {forgotten[way]} times) / "
                f"{WAYS[0]} (forgotten {forgotten[WAYS[0]]} times)",
                *(statistics.median(ratios), min(ratios), max(ratios)),
                "≥ 1",
            )


def _rank(rank: int, folder: str) -> list[dict[str, tuple[float, float, int]]]:
    """By round and way: seconds of the training, CPU seconds of this process, and how often an order was forgotten."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    store = torch.distributed.FileStore(f"{folder}/store", RANKS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    measured = []
    for number in range(-1, ROUNDS):
        ways = WAYS if number % 2 else WAYS[::-1]
        times = {way: _trained(way) for way in ways}
        if number >= 0:  # after a round that warms up
            measured.append(times)
    torch.distributed.destroy_process_group()
    return measured


def _trained(way: str) -> tuple[float, float, int]:
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    forget, forgotten = Coordinator._invalidate_trace, []

    def noted(coordinator: Any) -> None:
        forgotten.append(coordinator)
        forget(coordinator)

    def configured(*given: Any) -> dict[str, Any]:
        config = of_settings(*given)
        if way == WAYS[2]:
            config["zero_optimization"]["stage3_prefetch_bucket_size"] = 0
        return config

    of_settings = engine.deepspeed_config
    shared = mock.patch.object(Traces, "_enter", return_value=None)
    schedule = ScheduleSettings().over(steering.STEPS, steering.FIXED.alpha)
    options = {"mode": "inject", "granularity": "sample", "strategy": "mean", "threshold": -steering.NEVER}
    with (
        mock.patch.object(Coordinator, "_invalidate_trace", noted),
        mock.patch.object(engine, "deepspeed_config", configured),
        mock.patch.multiple(steering, HIDDEN=HIDDEN, LENGTH=LENGTH),
        shared if way == WAYS[1] else contextlib.nullcontext(),
    ):
        started = time.process_time()
        seconds = steering._trained(
            steering._examples(),
            lambda course: Screened(
                course, DeltaLoss(steering.FIXED, **options), vectors=steering._vectors(), schedule=schedule
            ),
            zero_stage=3,
            micro_batch_size=steering.BATCH // RANKS,
        )
        return seconds, time.process_time() - started, len(forgotten)
