"""What a process of a job does: the call, its own end, and ending with its parent. Imports nothing heavy."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

from bulwark.jobs.sealing import Sealing, sealed

_FLUSH_FAILED = 120  # what Python itself exits with
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def perform(function: str, arguments: Mapping[str, Any], sealing: Sealing | None = None) -> None:
    """Do a call here and now, between the verification of what it reads and the sealing of what it makes."""
    module, name = function.rsplit(".", 1)
    with sealed(sealing):
        getattr(importlib.import_module(module), name)(**arguments)


def leave(status: int = 0) -> NoReturn:
    """End this process without taking the interpreter down, which costs a second once torch is loaded.

    Everything that is to be seen afterwards is done first, in Python's order: threads that are no daemons are joined,
    exit handlers run (logging flushes its own; multiprocessing ends its children), stdout and stderr are flushed.
    """
    threading._shutdown()  # as multiprocessing ends its own processes
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        status = status or _FLUSH_FAILED
    os._exit(status)


def die_with_parent() -> None:
    """Have Linux kill this process when the process (or thread) that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
