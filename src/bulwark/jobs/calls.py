"""A workflow script's last line: one call of the library, in the warm parent of this workflow or in this process.

Either way the process ends with the call: `run` does not return. Imports nothing heavy, so that a
script that hands its call to the warm parent costs a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, Literal, NoReturn

from bulwark.interrupts import Interrupted
from bulwark.jobs import devices
from bulwark.jobs.process import leave, perform
from bulwark.jobs.sealing import Sealing, call_of, sealed, sealing_of

__all__ = ["call_of", "leave", "run", "sealed", "sealing_of"]

# Newer processors have wider vectors, round differently with them and train another model. What is computed on CPUs is
# computed as on one of 2013, unless the user says otherwise: the miniature's numbers depend on it (docs/miniature.md).
ROUNDING = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
# Set where the workflow has limited PyTorch's vectors, and not the user.
LIMITED = "BULWARK_LIMITED_VECTORS"

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
    lifted = in_bfloat16(arguments) and lift(os.environ)
    if not gpus and warm != "never" and not lifted:  # the parent has PyTorch imported, with the limit
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


def round_alike(environment: MutableMapping[str, str]) -> None:
    """Have the processes that get this environment round as on any other processor, where the user does not say."""
    if "ATEN_CPU_CAPABILITY" not in environment:
        environment[LIMITED] = "1"
    for variable, level in ROUNDING.items():
        environment.setdefault(variable, level)


def lift(environment: MutableMapping[str, str]) -> bool:
    """Let PyTorch, which is not imported yet, use the processor's own vectors; whether the workflow had limited them.

    On processors with AMX its attention in bfloat16 takes a path that AVX2 does not have ("pack_vnni2 is only supported
    when avx512 is supported"). What is computed in bfloat16 is not promised to round alike.
    """
    if environment.pop(LIMITED, None) is None:
        return False
    environment.pop("ATEN_CPU_CAPABILITY", None)
    return True


def in_bfloat16(told: Any) -> bool:
    """Whether a call's arguments name bfloat16 as the dtype of a model or the precision of a training."""
    if dataclasses.is_dataclass(told) and not isinstance(told, type):
        told = vars(told)
    if isinstance(told, Mapping):
        named = (told.get(key) for key in ("dtype", "precision"))
        return "bfloat16" in named or any(map(in_bfloat16, told.values()))
    return isinstance(told, list | tuple) and any(map(in_bfloat16, told))


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
