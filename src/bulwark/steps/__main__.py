"""One process of a step that runs on several GPUs: `python -m bulwark.steps job.json`, started by the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from bulwark.jobs.job import Job
from bulwark.logs import log_to
from bulwark.steps import execute

if __name__ == "__main__":
    description = Path(sys.argv[-1])
    job = Job.read(description)
    log_to(job.log)
    execute(job)
