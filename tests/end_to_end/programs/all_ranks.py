"""A program for several processes: `launcher -m all_ranks FOLDER` does the plans of all programs, in one launch.

A plan is FOLDER/<program>/plan_<processes>.json, a list for the function `do` of that program; what that makes goes
beside it.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from pathlib import Path

import torch

from bulwark.models.readout import chunks
from bulwark.training import engine as engines


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = engines.start_processes()
    if processes.count > 1:
        chunks.CPU_CHUNK = 2**10  # so that the output embedding's weight is gathered for several chunks
    plans = sorted(folder.glob(f"*/plan_{processes.count}.json"))
    programs = [importlib.import_module(plan.parent.name) for plan in plans]
    gc.freeze()  # every engine collects garbage, and need not look through all that is imported
    for plan, program in zip(plans, programs, strict=True):
        program.do(json.loads(plan.read_text()), plan.parent, processes)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
