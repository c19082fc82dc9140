"""Snakemake's scheduler is kept from work that grows with the jobs, and keeps what a user sets; job arrays."""

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


class Executor:
    """What SLURM's has of what is used, and its way to lose jobs that arrive in parts; `sent` is what it submitted."""

    def __init__(self, *array_jobs):
        self.array_jobs = set(array_jobs)
        self.sent = []

    def run_jobs(self, jobs):
        self.sent += ["noted" for _ in range(not jobs)]

    def _submit_job(self, job):
        self.sent.append(job.name)

    def _submit_array_jobs(self, jobs):
        self.sent.append([job.name for job in jobs])


def job(name, rule, mem_mb=1, tmpdir="a", threads=1, group=False):
    resources = {"mem_mb": mem_mb, "tmpdir": tmpdir}
    told = {"name": name, "rule": SimpleNamespace(name=rule), "threads": threads, "resources": resources}
    return SimpleNamespace(**told, is_group=lambda: group)


SENT = [
    job("a", "short"),
    job("b", "long"),
    job("c", "short", mem_mb=2),
    job("d", "short", tmpdir="b"),
    job("e", "long"),
    job("f", "short", threads=2),
    job("g", "short", group=True),
    job("h", "short", mem_mb=2),
]


@pytest.mark.parametrize(
    ("chosen", "sent"),
    [
        (["short"], ["noted", ["a", "d"], "b", ["c", "h"], "e", "f", "g"]),
        (["all"], ["noted", ["a", "d"], ["b", "e"], ["c", "h"], "f", "g"]),
    ],
)
def test_an_array_is_of_jobs_that_ask_for_the_same_and_nobody_waits(chosen, sent):
    executor = Executor(*chosen)
    scheduling.send_alike_as_arrays(SimpleNamespace(_executor=executor))
    executor.run_jobs(SENT)
    assert executor.sent == sent


def test_without_arrays_the_executor_stays_as_it_is():
    executor = Executor()
    scheduling.send_alike_as_arrays(SimpleNamespace(_executor=executor))
    executor.run_jobs(SENT)
    assert executor.sent == []
    scheduling.send_alike_as_arrays(SimpleNamespace(_executor=SimpleNamespace()))
