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
JOBS = "BULWARK_JOBS"  # the file to which a plan then writes the jobs that it would start
FULL_LISTING = "Every job: the same with -p. Wall time, disk, downloads, judges, what to run first: bulwark plan TARGET"
TRIALS_OPENING = "Trials and their settings:"
SHARES_OPENING = "Trainings that share a job:"
_OWN = "bulwark: "


def _dry_run(arguments: Sequence[str], **environment: str) -> str:
    """What `snakemake --dry-run` prints for `arguments` (targets and options) without going through the jobs.

    Raises BulwarkError with Snakemake's message if there is no plan.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--quiet",
        "rules",
        "progress",
        "--cores",
        "all",
        *arguments,
    ]
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
        _dry_run(arguments, **{STANDING: str(told)})
        return json.loads(told.read_text(encoding="utf-8"))


def planned_jobs(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What a dry run prints, and what it would start: {configfiles, folder, options, jobs}, see `costs.graph`.

    Raises BulwarkError if there is no plan.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "jobs.json"
        printed = _dry_run(arguments, **{JOBS: str(told)})
        return printed, json.loads(told.read_text(encoding="utf-8"))


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
