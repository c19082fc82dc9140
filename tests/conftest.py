"""What tests share: one thread, an order that suits two workers, a copy of the repository and Snakemake run in it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports torch: tensors this small only wait for one another's threads.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
SMALLEST = "tests/config/smallest.yaml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order and group tests for `-n 2 --dist loadgroup`: the longest first; what shares a fixture on one worker.

    A group that a test names itself stays. Otherwise tests with a fixture of their module's are one group per file, and
    dry runs of the workflow, which share nothing, go one by one.
    """
    rank = {"end_to_end": 0, "workflow": 1, "unit": 2}
    items.sort(key=lambda item: rank.get(item.path.relative_to(ROOT / "tests").parts[0], 3))
    for item in items:
        if item.get_closest_marker("xdist_group") is None and "workflow" not in item.path.parts:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(ROOT))))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Put back what a test before has set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass(frozen=True)
class Checkout:
    """A copy of the working tree, with its own results."""

    folder: Path

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy; its output, both streams, is `stdout`."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0 or not check, done.stdout[-6000:]
        return done

    def plan(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry run would start."""
        return jobs(self.snakemake("--dry-run", "--quiet", "rules", *arguments).stdout)

    def planned_outputs(self, *arguments: str) -> list[str]:
        """The output files that a dry run would make."""
        text = self.snakemake("--dry-run", *arguments).stdout
        return [
            path.strip() for line in re.findall(r"^    output: (.*)$", text, re.MULTILINE) for path in line.split(",")
        ]


def jobs(output: str) -> dict[str, int]:
    """Read Snakemake's table of jobs; the rows of the first table."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    rows = {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)\s*$", table, re.MULTILINE)}
    rows.pop("total", None)
    return rows


def copy_of_the_tree(folder: Path) -> Checkout:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if not source.is_symlink() and not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    return Checkout(folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh copy without results."""
    return copy_of_the_tree(tmp_path / "bulwark")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy in which the smallest configuration of the miniature has run; tests leave its results as they are.

    It runs once, whatever the number of workers; each has a copy of its own, since tests edit its code for a while.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run = folder / "finished-run"
    with locked(folder / "finished-run.lock"):
        if not run.exists():
            copy = copy_of_the_tree(folder / "finished-run-begun")
            copy.snakemake("--cores", "2", "--configfile", SMALLEST, "--quiet", "rules", "--", "all")
            copy.folder.rename(run)
    own = tmp_path_factory.mktemp("finished") / "bulwark"
    shutil.copytree(run, own, symlinks=True)
    return Checkout(own)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, waiting for it as long as it takes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
