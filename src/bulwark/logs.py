"""Logging of one job: every line goes to the job's log file and to the terminal; errors end up in both."""

from __future__ import annotations

import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from types import TracebackType

from bulwark import interrupts
from bulwark.errors import BulwarkError, without_credentials

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(path: str | Path) -> None:
    """Send the log of this process to the file at `path` and to stderr; processes of one job append to one file.

    From now on the process also ends in order when it is told to (see `interrupts`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stderr)]
    for handler in handlers:
        handler.setFormatter(_Discreet(_FORMAT, datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("bulwark").setLevel(logging.INFO)
    logging.captureWarnings(True)
    # peft 0.21 asks models of transformers 5 for it under its old name whenever adapters are put on; nobody who reads
    # the log can do anything about that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    sys.excepthook = partial(_log_exception, path)
    interrupts.catch()


class _Discreet(logging.Formatter):
    """Lines and tracebacks without credentials, whoever wrote them."""

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


def _log_exception(path: Path, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an error in the input as one sentence, everything else with its traceback; the log's path names the job."""
    if isinstance(error, BulwarkError):
        logging.getLogger("bulwark").error("%s (%s)", error, path)
    else:
        logging.getLogger("bulwark").error("This job failed (%s).", path, exc_info=(kind, error, trace))
