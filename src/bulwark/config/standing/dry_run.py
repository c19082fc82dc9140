"""Asking Snakemake for a plan, in a process of its own: what it prints, and how the plan's files stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bulwark.config.standing.gate import OPENING
from bulwark.errors import BulwarkError

STANDING = "BULWARK_STANDING"  # the file to which a plan then writes `Standings.as_plain`
TRIALS_OPENING = "Trials and their settings:"
SHARES_OPENING = "Trainings that share a job:"
_OWN = "bulwark: "


def dry_run(arguments: Sequence[str], **environment: str) -> str:
    """What `snakemake --dry-run` prints for `arguments` (targets and options).

    Raises BulwarkError with Snakemake's message if there is no plan.
    """
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "all", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    printed = done.stdout + done.stderr
    if done.returncode == 0:
        return printed
    if _OWN in done.stderr:  # our own message, which says all
        raise BulwarkError(done.stderr.partition(_OWN)[2].strip())
    raise BulwarkError(f"Snakemake has no plan for this:\n{printed.strip()[-3000:]}")


def standings(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """How all files of a plan stand (`Standings.as_plain`). Raises BulwarkError if there is no plan."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "standing.json"
        dry_run(["--quiet", "rules", *arguments], **{STANDING: str(told)})
        return json.loads(told.read_text(encoding="utf-8"))


def told_again(printed: str) -> str:
    """What a dry run says of finished results that would be made again; "" if it says nothing."""
    return _paragraph(printed, OPENING)


def told_trials(printed: str) -> str:
    """What a dry run says of the trials that it would make; "" if there are none."""
    return _paragraph(printed, TRIALS_OPENING)


def told_shares(printed: str) -> str:
    """What a dry run says of trainings that share a job; "" if there are none."""
    return _paragraph(printed, SHARES_OPENING)


def _paragraph(printed: str, opening: str) -> str:
    """A line that begins so, and the indented lines after it."""
    lines = printed.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(opening)), None)
    if start is None:
        return ""
    end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith("  ")), len(lines))
    return "\n".join(lines[start:end])
