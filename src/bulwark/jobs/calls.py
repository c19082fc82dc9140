"""A workflow script's last line: one call of the library, in the warm parent of this workflow or in this process.

Either way the process ends with the call: `run` does not return. Imports nothing but the standard library, so that a
script that hands its call to the warm parent costs a tenth of a second.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, Literal, NoReturn

_OF_MODELS = (
    "bulwark.models.checkpoints",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
)
_FLUSH_FAILED = 120  # what Python itself exits with


def run(
    function: str,
    arguments: Mapping[str, Any],
    *,
    log: str,
    gpus: int = 0,
    warm: Literal["start", "use", "never"] = "start",
) -> NoReturn:
    """Call `function` ("package.module.name") with the keyword `arguments`, logging to the file `log`; then exit.

    The caller logs to `log` already, so that a mistake in the arguments is logged, too. Arguments are plain data,
    paths, or objects of this package's own classes.

    gpus: of the job; one that asks for any runs in a process of its own. warm: whether the call may start the warm
    parent, uses one only if it is there (a call that imports nothing heavy), or never runs in it (a call whose
    imports depend on what it sets first).

    The process exits with status 0, or as Python does after an exception, which is logged with its traceback.
    """
    call = {"function": function, "log": str(log), "arguments": _plain(arguments)}
    if not gpus and warm != "never":
        from bulwark.jobs import warm as parent

        parent.hand_over(call, start=warm == "start")  # exits if a child did it, returns if there is no parent
    if warm == "start":
        _import_models()
    perform(function, call["arguments"])
    leave()


def perform(function: str, arguments: Mapping[str, Any]) -> None:
    """Do a call here and now."""
    module, name = function.rsplit(".", 1)
    getattr(importlib.import_module(module), name)(**arguments)


def _import_models() -> None:
    """Import what every job with a model needs, without the garbage collector, which would take a quarter of the time.

    It would look through a million objects again and again, none of which is ever thrown away.
    """
    gc.disable()
    for name in _OF_MODELS:
        with suppress(Exception):  # the call itself will say so
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


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


def _plain(value: Any) -> Any:
    """The value without Snakemake's classes, so that any process can read it."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(_plain(item) for item in value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None or isinstance(value, PurePath) or type(value).__module__.startswith("bulwark."):
        return value
    raise TypeError(f"A job takes plain data, not {type(value).__name__}: {value!r}")
