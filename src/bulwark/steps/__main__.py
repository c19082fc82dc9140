"""One process of a step that runs on several GPUs: `python -m bulwark.steps job.json`, started by the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from bulwark.interrupts import Interrupted
from bulwark.jobs.job import Job
from bulwark.jobs.launch import stop_file, watch
from bulwark.jobs.process import leave
from bulwark.logs import log_to
from bulwark.steps import execute

if __name__ == "__main__":
    description = Path(sys.argv[-1])
    job = Job.read(description)
    log_to(job.log)
    watch(stop_file(description))
    try:
        execute(job)
    except Interrupted as ended:
        leave(ended.code)
