"""A workflow script's last line: one call of the library, in the warm parent of this workflow or in this process.

Either way the process ends with the call: `run` does not return. Imports nothing heavy, so that a
script that hands its call to the warm parent costs a tenth of a second.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, Literal, NoReturn

from bulwark.interrupts import Interrupted
from bulwark.jobs import devices
from bulwark.jobs.process import leave, perform
from bulwark.jobs.sealing import Sealing, call_of, sealed, sealing_of

__all__ = ["call_of", "leave", "run", "sealed", "sealing_of"]

_OF_MODELS = (
    "bulwark.models.checkpoints",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
)


def run(
    function: str,
    arguments: Mapping[str, Any],
    *,
    log: str,
    gpus: int = 0,
    sealing: Sealing | None = None,
    warm: Literal["start", "use", "never"] = "start",
) -> NoReturn:
    """Call `function` ("package.module.name") with the keyword `arguments`, logging to the file `log`; then exit.

    The caller logs to `log` already, so that a mistake in the arguments is logged, too. Arguments are plain data,
    paths, or objects of this package's own classes.

    gpus: of the job; one that asks for any runs in a process of its own, on GPUs that no other local job has. sealing:
    its files, verified before the call and sealed after it. (`call_of(snakemake)` gives log, gpus and sealing.) warm:
    whether the call may start the warm parent, uses one only if it is there (a call that imports nothing heavy), or
    never runs in it (a call whose imports depend on what it sets first).

    The process exits with status 0, or as Python does after an exception, which is logged with its traceback; told to
    end, with 128 and the number of the signal.
    """
    call = {"function": function, "log": str(log), "arguments": _plain(arguments), "sealing": sealing}
    if not gpus and warm != "never":
        from bulwark.jobs import warm as parent

        parent.hand_over(call, start=warm == "start")  # exits if a child did it, returns if there is no parent
    devices.take(gpus)
    if warm == "start":
        _import_models()
    try:
        perform(function, call["arguments"], sealing)
    except Interrupted as ended:
        leave(ended.code)
    leave()


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
