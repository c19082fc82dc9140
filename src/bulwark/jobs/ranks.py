"""torchrun for `launch`: it leaves SIGINT, SIGTERM and SIGHUP to the processes that it starts, so that they can save.

torchrun itself would end them 30 seconds after SIGTERM, which SLURM sends to every process of a job before its time is
up. SIGUSR1 makes it end them. On several nodes it learns from SLURM which of them it is on.
"""

from __future__ import annotations

import os
import signal
import sys

from torch.distributed import run

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # which its processes inherit, until they have their own handlers
    several = any(word.startswith("--nnodes=") for word in sys.argv)
    node = [f"--node-rank={os.environ['SLURM_NODEID']}"] if several else []
    run.main([f"--signals-to-handle={signal.SIGUSR1.name}", *node, *sys.argv[1:]])
