"""A test's process as a job that ends in order when it is told to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from bulwark import interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def caught() -> Iterator[None]:
    """Within it the process is such a job; afterwards it has the handlers that it had."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.catch()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        interrupts.forget()
