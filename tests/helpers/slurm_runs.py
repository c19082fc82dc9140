"""A SLURM cluster for a test, or its absence, and Snakemake's command in a copy of the repository against it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "slurm"))
from cluster import Cluster, ClusterError, what_is_missing

PATIENCE = 900.0  # seconds, for a whole run


@contextmanager
def running(**shape: Any) -> Iterator[Cluster]:
    """A running cluster of two CPUs per node, whatever the machine has, because its jobs share the machine.

    Where it cannot start the test is skipped, or fails if BULWARK_REQUIRE_SLURM=1.
    """
    unfit = pytest.fail if os.environ.get("BULWARK_REQUIRE_SLURM") == "1" else pytest.skip
    if what_is_missing():
        unfit(f"There is no SLURM to test with. {what_is_missing()}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        started = Cluster(Path(folder), cpus=2, **shape)
        try:
            started.start()
        except ClusterError as error:
            unfit(f"SLURM does not start here. {error}")
        try:
            yield started
        finally:
            started.stop()


class Run:
    """`snakemake --profile slurm` with these arguments, running in a copy of the repository against a cluster."""

    def __init__(self, folder: Path, cluster: Cluster, *arguments: str) -> None:
        self.folder = folder
        self.cluster = cluster
        self.deadline = time.monotonic() + PATIENCE
        variables = {**os.environ, **cluster.environment, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
        command = ("snakemake", "--profile", "slurm", *arguments)
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its jobs end with the cluster
            self.process.wait()

    @property
    def output(self) -> str:
        """What Snakemake has printed so far."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def submitted(self) -> dict[str, str]:
        """SLURM's id of each job submitted so far -> its rule and wildcards, from the path of its log."""
        line = r"has been submitted with SLURM jobid (\d+) \(log: \S*/rule_(\S+)/\d+\.log\)"
        return dict(re.findall(line, self.output))

    def wait_until(self, what: str, happened: Callable[[], object]) -> None:
        """Look until `happened` returns something true; fail if Snakemake ends or the time runs out first."""
        while not happened():
            assert self.process.poll() is None, self.told(f"Snakemake ended before {what}")
            assert time.monotonic() < self.deadline, self.told(f"Waited in vain until {what}")
            time.sleep(0.2)

    def finish(self, code: int = 0) -> Run:
        """Wait for the end, with this status."""
        try:
            ended = self.process.wait(max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(self.told(f"Not finished after {PATIENCE:.0f} s"))
        assert ended == code, self.told(f"Snakemake ended with {ended}")
        return self

    def told(self, what: str) -> str:
        return f"{what}:\n{self.output[-8000:]}\nThe cluster:\n{self.cluster.condition()}"


def steps_saved(state: Path) -> list[int]:
    """Steps of which a complete training state lies in the folder `state`."""
    names = [entry.name for entry in state.iterdir()] if state.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name)))
