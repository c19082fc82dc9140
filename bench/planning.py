"""The plan of the papers beside a skeleton with as many jobs: `snakemake -np`, user time, both in a temporary folder.

The skeleton is as little as a workflow of this shape can be: chains of three script rules whose input, three
parameters and three resources are functions that return constants. It is the floor that Snakemake itself sets.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.timing import Ratio, ratio

ROOT = Path(__file__).parents[1]

_RULE = """
rule {name}:
    input:
        {input},
    output:
        "out/{{chain}}/{name}.txt",
    log:
        "logs/{{chain}}/{name}.log",
    threads: lambda wildcards: 1
    resources:
        gpu=lambda wildcards: 0,
        mem_mb=lambda wildcards: 1000,
        runtime=lambda wildcards: 10,
    params:
        one=lambda wildcards: 1,
        two=lambda wildcards: {{"a": 1, "b": [1, 2]}},
        three=lambda wildcards: "text",
    script:
        "script.py"
"""
_ENDS = """
rule all:
    default_target: True
    input:
        [f"out/{{chain}}/third.txt" for chain in range({chains})],
    localrule: True
"""


def run() -> list[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        ours = _ours(Path(folder) / "ours")
        jobs = _jobs(ours().stdout)
        skeleton = _skeleton(Path(folder) / "skeleton", jobs)
        assert abs(_jobs(skeleton().stdout) - jobs) <= 3
        what = f"plan of {jobs:,} jobs over a skeleton's"
        return [ratio(what, ours, skeleton, wanted="≤ 1.45", rounds=3, clock=user_seconds)]


def user_seconds(work: Callable[[], object]) -> float:
    """User time of the processes that a piece of work starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    work()
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def _ours(folder: Path) -> Callable[[], subprocess.CompletedProcess]:
    folder.mkdir()
    return _dry_run(ROOT / "Snakefile", folder)


def _skeleton(folder: Path, jobs: int) -> Callable[[], subprocess.CompletedProcess]:
    folder.mkdir()
    (folder / "script.py").write_text("", encoding="utf-8")
    names = ("first", "second", "third")
    inputs = ("[]", *(f'lambda wildcards: f"out/{{wildcards.chain}}/{before}.txt"' for before in names))
    rules = [_RULE.format(name=name, input=asked) for name, asked in zip(names, inputs, strict=False)]
    (folder / "Snakefile").write_text("".join([*rules, _ENDS.format(chains=jobs // 3)]), encoding="utf-8")
    return _dry_run(folder / "Snakefile", folder)


def _dry_run(snakefile: Path, folder: Path, *options: str) -> Callable[[], subprocess.CompletedProcess]:
    command = [sys.executable, "-m", "snakemake", "-np", "-s", str(snakefile), "-d", str(folder), *options, "--", "all"]

    def work() -> subprocess.CompletedProcess:
        return subprocess.run(command, capture_output=True, text=True, check=True)

    return work


def _jobs(output: str) -> int:
    return int(re.search(r"^total\s+(\d+)", output, re.MULTILINE)[1])
