"""What several measurements need of processes: their memory, and one that has nothing of this one's."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def memory(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
