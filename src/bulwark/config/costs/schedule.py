"""How long all jobs of a plan take on so many GPUs: a simulation of list scheduling.

Whenever GPUs are free, of the jobs that can start those start first from which the longest way leads to the end (the
critical path; Graham 1969 bounds such a schedule by twice the best). Where no job needs a GPU, threads are counted.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bulwark.config.costs.graph import Job
from bulwark.errors import BulwarkError


@dataclass(frozen=True)
class Schedule:
    """hours: until the last job has ended. critical: the longest way through the plan, that no number of GPUs shortens.

    begins, ends: of each job, in hours. devices: how many there are. unit: what they are, "GPUs" or "cores".
    """

    hours: float
    critical: float
    begins: tuple[float, ...]
    ends: tuple[float, ...]
    devices: int
    unit: str


def unit_of(jobs: Sequence[Job]) -> str:
    """What the jobs of a plan share: "GPUs", or "cores" where none of them needs a GPU."""
    return "GPUs" if any(job.gpus for job in jobs) else "cores"


def schedule(jobs: Sequence[Job], devices: int) -> Schedule:
    """Raises BulwarkError if a job needs more devices than there are."""
    unit = unit_of(jobs)
    needed = [job.gpus if unit == "GPUs" else min(job.threads, devices) for job in jobs]
    if needed and max(needed) > devices:
        worst = jobs[needed.index(max(needed))]
        raise BulwarkError(
            f"{worst.rule} for {'/'.join(worst.wildcards.values())} needs {max(needed)} GPUs; --gpus says {devices}."
        )
    left = _ways(jobs)
    then: list[list[int]] = [[] for _ in jobs]
    waiting = [len(job.needs) for job in jobs]
    for place, job in enumerate(jobs):
        for other in job.needs:
            then[other].append(place)
    ready: dict[int, list[tuple[float, int]]] = defaultdict(list)  # by how many devices they need
    for place, count in enumerate(waiting):
        if not count:
            heapq.heappush(ready[needed[place]], (-left[place], place))
    begins, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    running: list[tuple[float, int]] = []
    now, free = 0.0, devices
    while running or any(ready.values()):
        while fitting := [count for count, heap in ready.items() if heap and count <= free]:
            count = min(fitting, key=lambda count: ready[count][0])
            place = heapq.heappop(ready[count])[1]
            free -= count
            begins[place], ends[place] = now, now + jobs[place].time.hours
            heapq.heappush(running, (ends[place], place))
        now, place = heapq.heappop(running)
        free += needed[place]
        for follower in then[place]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready[needed[follower]], (-left[follower], follower))
    return Schedule(now, max(left, default=0.0), tuple(begins), tuple(ends), devices, unit)


def _ways(jobs: Sequence[Job]) -> list[float]:
    """The hours from the start of each job to the end of the longest chain of jobs that waits for it."""
    left = [job.time.hours for job in jobs]
    for place in reversed(range(len(jobs))):
        for other in jobs[place].needs:
            left[other] = max(left[other], jobs[other].time.hours + left[place])
    return left
