"""Snakemake's main process in a run of many short jobs: as it is, and with `bulwark.jobs.scheduling`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.planning import user_seconds
from bench.timing import Ratio, ratio

JOBS = 400
_RULES = """
from bulwark.jobs import scheduling

rule all:
    input: [f"out/{n}" for n in range(JOBS)]

rule one:
    input: multiext("in/{n}.", "a", "b", "c", "d")
    output: "out/{n}"
    shell: "touch {output}"
"""
_SPARED = """
onstart:
    scheduling.spare(workflow.scheduler)
"""


def run() -> Iterator[Ratio]:
    """Of Snakemake and its jobs together."""
    with tempfile.TemporaryDirectory() as name:
        folders = {way: Path(name) / way for way in ("plain", "spared")}
        for way, folder in folders.items():
            (folder / "in").mkdir(parents=True)
            for number in range(JOBS):
                for ending in "abcd":
                    (folder / "in" / f"{number}.{ending}").touch()
            text = _RULES.replace("JOBS", str(JOBS)) + (_SPARED if way == "spared" else "")
            (folder / "Snakefile").write_text(text)
        yield ratio(
            f"user time, {JOBS} jobs that do nothing, Snakemake as it is / spared",
            lambda: _run(folders["plain"]),
            lambda: _run(folders["spared"]),
            wanted="> 1",
            rounds=3,
            clock=user_seconds,
        )


def _run(folder: Path) -> None:
    line = [sys.executable, "-m", "snakemake", "-c2", "--forceall", "--quiet", "all"]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
