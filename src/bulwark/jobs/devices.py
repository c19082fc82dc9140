"""Which GPUs of this machine a local job takes: as many as it asks for, and none that another job has.

A scheduler of a cluster gives its jobs GPUs of their own. On one machine nothing does: every job would take the first.
Imports nothing heavy: it is done before torch looks which GPUs there are.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bulwark.errors import BulwarkError

VARIABLE = "BULWARK_GPUS"  # set for local jobs: what they share, "0,1,2"
_SECONDS_BETWEEN_LOOKS = 0.5
_log = logging.getLogger(__name__)
_held: list[int] = []  # descriptors of the locks; open until the process ends, however it ends


def offer(gpus: Sequence[str]) -> None:
    """Let the local jobs of this Snakemake process share these GPUs, as CUDA_VISIBLE_DEVICES names them."""
    os.environ.pop(VARIABLE, None)
    if gpus:
        os.environ[VARIABLE] = ",".join(gpus)


def take(count: int, folder: Path | None = None) -> None:
    """Take `count` of the GPUs that were offered, until this process ends, and let it see no others.

    Waits, and says so in the log, as long as jobs of another run on this machine have them: Snakemake starts no more
    jobs of one run than there are GPUs for. folder: where the locks lie, by default one of this user's.

    Raises BulwarkError if fewer are offered than the job needs.
    """
    offered = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    if not count or not offered:
        return
    if count > len(offered):
        raise BulwarkError(
            f"This job needs {count} GPUs, and jobs of this machine share {len(offered)} ({','.join(offered)}). Make "
            "more visible (CUDA_VISIBLE_DEVICES), or lower resources.train.gpu or generate.gpu of the model."
        )
    folder = folder or Path(tempfile.gettempdir(), f"bulwark-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    waited = False
    while len(mine := _locked(offered, count, folder)) < count:
        if not waited:
            _log.info("Other jobs have the GPUs of this machine; waiting for %d of %s.", count, ",".join(offered))
            waited = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    _log.info("This job has GPU %s of %s.", ",".join(mine), ",".join(offered))


def _locked(offered: Sequence[str], count: int, folder: Path) -> list[str]:
    """The first `count` GPUs that could be locked; fewer, and none of them kept, if there are not as many free."""
    mine, locks = [], []
    for name in offered:
        lock = os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        mine.append(name)
        locks.append(lock)
        if len(mine) == count:
            _held.extend(locks)
            return mine
    for lock in locks:
        os.close(lock)
    return []
