"""One process of a step on several GPUs, or of steps that share a job: `python -m bulwark.steps job.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bulwark.interrupts import Interrupted
from bulwark.jobs.job import Job
from bulwark.jobs.launch import stop_file, watch
from bulwark.jobs.process import leave
from bulwark.jobs.together import Together
from bulwark.logs import log_to
from bulwark.steps import carry_out, execute_all

if __name__ == "__main__":
    description = Path(sys.argv[-1])
    together = Together.read(description)
    job = Job.read(description) if together is None else together.parts[0].job
    log_to(job.log)
    watch(stop_file(description))
    try:
        if together is None:
            carry_out(job)
        else:
            if int(os.environ.get("WORLD_SIZE", 1)) == 1:
                import torch

                torch.set_num_threads(together.threads)
            execute_all(together, description)
    except Interrupted as ended:
        leave(ended.code)
