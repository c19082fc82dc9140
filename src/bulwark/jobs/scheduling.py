"""Snakemake's scheduler, kept from work that grows with the number of jobs (seen with Snakemake 9.27).

In a run of a thousand jobs its main process took most of a core, which on two cores the jobs lack:

* Each round of the scheduler sets a timer for a further round, because the limit of the rate at which jobs are started
  may have passed by then. So rounds never end, and there are more of them per second with each job. Without a limit
  there are no timers: a round follows when a job ends.
* Each round asks the file system for the sizes of all inputs of all jobs that are ready, which no longer change.

And SLURM's executor, kept from what makes job arrays fail (seen with snakemake-executor-plugin-slurm 2.8): it gives
every job of an array what the first one asks for, and it never submits a job that arrives while others of its rule wait
for a free place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_USUAL = (100, 1)  # jobs per seconds: Snakemake's limit where the user sets none
_OWN = ("tmpdir", "disk", "disk_mb", "disk_mib")  # resources that differ between jobs, and that SLURM is not asked for


def spare(scheduler: Any) -> None:
    """Take the usual limit from Snakemake's `scheduler`, and have it ask for each file's size once.

    A limit that the user sets stays (`max-jobs-per-timespan` in profiles/slurm).
    """
    limit = scheduler.job_rate_limiter
    if limit and (limit.max_jobs, limit.timespan) == _USUAL:
        scheduler.job_rate_limiter = None
    measure, sizes = scheduler.update_input_sizes, scheduler._input_sizes

    async def of_new_files(jobs: Iterable[Any]) -> None:
        jobs = list(jobs)
        await measure([job for job in jobs if any(path not in sizes for path in job.input)])
        if any(path not in sizes for job in jobs for path in job.input):  # beyond 10,000 it forgets some
            await measure(jobs)

    scheduler.update_input_sizes = of_new_files


def share(scheduler: Any, name: str, count: int) -> None:
    """Have it start no more jobs at once than there are of a resource, unless the user has set how many there are.

    A job that needs more is started nowhere: check that before.
    """
    if count and name not in scheduler.global_resources:
        scheduler.global_resources[name] = scheduler.resources[name] = count


def send_alike_as_arrays(scheduler: Any) -> None:
    """Have jobs of the rules of `slurm-array-jobs` submitted at once, as an array those that ask for the same."""
    executor = scheduler._executor
    chosen = getattr(executor, "array_jobs", ())
    if not chosen:
        return
    submit = executor.run_jobs

    def by_what_they_ask_for(jobs: Iterable[Any]) -> None:
        submit([])  # it notes in which loop it is called
        alike: dict[Any, list[Any]] = defaultdict(list)
        for job in jobs:
            if job.is_group() or not {job.rule.name, "all"} & chosen:
                alike[id(job)].append(job)
            else:
                asks = sorted((name, value) for name, value in job.resources.items() if name not in _OWN)
                alike[(job.rule.name, job.threads, tuple(asks))].append(job)
        for same in alike.values():
            if len(same) == 1:
                executor._submit_job(same[0])
            else:
                executor._submit_array_jobs(same)

    executor.run_jobs = by_what_they_ask_for
