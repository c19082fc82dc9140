"""Snakemake's scheduler is kept from work that grows with the jobs, and keeps what a user sets."""

import asyncio
from types import SimpleNamespace

import pytest

from bulwark.jobs import scheduling


class Scheduler:
    """What Snakemake's has of what is used; `asked` are the files whose sizes it was told to find out."""

    def __init__(self, limit=None):
        self.job_rate_limiter = limit
        self._input_sizes = {}
        self.asked = []

    async def update_input_sizes(self, jobs):
        paths = [path for job in jobs for path in job.input]
        self.asked += paths
        self._input_sizes.update(dict.fromkeys(paths, 1))
        if len(self._input_sizes) > 4:
            for path in [path for path in self._input_sizes if path not in paths]:
                del self._input_sizes[path]


def jobs(*inputs):
    return [SimpleNamespace(input=paths.split()) for paths in inputs]


def limit(jobs, seconds):
    return SimpleNamespace(max_jobs=jobs, timespan=seconds)


@pytest.mark.parametrize(("set_to", "kept"), [(limit(100, 1), False), (limit(1, 2), True), (limit(100, 60), True)])
def test_only_the_usual_limit_is_taken_away(set_to, kept):
    scheduler = Scheduler(set_to)
    scheduling.spare(scheduler)
    assert (scheduler.job_rate_limiter is set_to) == kept
    without = Scheduler()
    scheduling.spare(without)
    assert without.job_rate_limiter is None


def test_a_size_is_asked_for_once():
    scheduler = Scheduler()
    scheduling.spare(scheduler)
    asyncio.run(scheduler.update_input_sizes(jobs("a b", "b c")))
    asyncio.run(scheduler.update_input_sizes(iter(jobs("b c", "d"))))
    assert scheduler.asked == ["a", "b", "b", "c", "d"]


def test_sizes_that_it_forgets_are_asked_for_again():
    scheduler = Scheduler()
    scheduling.spare(scheduler)
    ready = jobs("a b", "c d")
    asyncio.run(scheduler.update_input_sizes(ready))
    asyncio.run(scheduler.update_input_sizes([*ready, *jobs("e")]))
    assert set(scheduler._input_sizes) == set("abcde")
