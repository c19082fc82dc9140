"""What a recipe's last step took: the wall time of its job, with loading and saving, on its machine.

    seconds    from the start of the job to its checkpoint

Every step has it, a search and an edit of weights as well as a training; `compute` counts operations, of trainings
alone. Of an attack it is what the attack costs, not the defense before it. It is neither better higher nor lower, and
says as much of the machine as of the step: compare numbers of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.settings import Closed

METRICS: dict[str, bool | None] = {"seconds": None}


class Settings(Closed):
    """Nothing can be set."""


def applies(settings: Closed) -> bool:
    return True


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the manifest does not say how long its job took."""
    seconds = manifest.get("wall_seconds")
    if seconds is None:
        raise RecordError(f"{folder / 'checkpoint.json'}: does not say how long it took. Make the checkpoint again.")
    return Analysis({"seconds": (float(seconds), 1)}, [])
