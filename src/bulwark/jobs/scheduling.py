"""Snakemake's scheduler, kept from work that grows with the number of jobs (seen with Snakemake 9.27).

In a run of a thousand jobs its main process took most of a core, which on two cores the jobs lack:

* Each round of the scheduler sets a timer for a further round, because the limit of the rate at which jobs are started
  may have passed by then. So rounds never end, and there are more of them per second with each job. Without a limit
  there are no timers: a round follows when a job ends.
* Each round asks the file system for the sizes of all inputs of all jobs that are ready, which no longer change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_USUAL = (100, 1)  # jobs per seconds: Snakemake's limit where the user sets none


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
