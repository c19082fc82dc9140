"""What tests share: one thread, an order that suits two workers, a copy of the repository and Snakemake run in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pytest

from bulwark.config import loading, overlays
from bulwark.config.costs.graph import Job, jobs_of

# Before anything imports torch: tensors this small only wait for one another's threads.
os.environ["OMP_NUM_THREADS"] = "1"
# Under nohup, or in the background of a script, these are ignored, and every process that a test starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parents[1]
SMALLEST = "tests/config/smallest.yaml"
STEERING = ("config/miniature.yaml", "tests/config/steering.yaml")

# Files of tests that share a fixture of the session.
SHARING = {
    "finished": {
        "test_whole_path.py",
        "test_steering_path.py",
        "test_rescoring.py",
        "test_two_processes.py",
        "test_shared_path.py",
        "test_choice.py",
        "test_snakemake_report.py",
    },
    "launched": {
        f"test_{name}_ranks.py"
        for name in (
            "training",
            "steered",
            "screened",
            "delta",
            "analysis",
            "immunised",
            "forgetting",
            "tampering",
            "shared",
        )
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=40, help="faults that each test of tests/faults tries")
    parser.addoption("--faults-seed", default="0", help="another number tries other faults")
    parser.addoption("--faults-world", help="a checkout in which the smallest configurations have run already")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many faults were tried, and what was said about them."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "teardown" else ():
            counts.update(value if name == "faults" else {})
    if counts:
        found = ", ".join(f"{counts[kind]} {kind}" for kind in ("silent", "riddles", "told", "mended"))
        terminalreporter.write_line(f"{counts.total()} faults: {found}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker is left with one of them at the end."""
    folders = ("end_to_end", "faults", "workflow", "unit")
    items.sort(key=lambda item: next(number for number, name in enumerate(folders) if name in item.path.parts))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `-n 2` shares tests out: what shares a fixture goes to one worker.

    (The mark xdist_group cannot say so: pytest-xdist 3.8 writes it into a node's id, which pytest 9.2 does not let it.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Grouped(config, log)


def group_of(nodeid: str) -> str:
    """A file's tests are a group; dry runs share nothing and go one by one."""
    path = PurePath(nodeid.split("::")[0])
    if path.parent.name == "workflow":
        return nodeid
    if path.parent.name == "faults":
        return "finished"
    return next((name for name, files in SHARING.items() if path.name in files), str(path))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Put back what a test before has set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass(frozen=True)
class Checkout:
    """A copy of the working tree, with its own results."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of a process which runs the copy's code."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def snakemake(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy, with variables of its environment; its output, both streams, is `stdout`."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=self.environment | variables,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0 or not check, done.stdout[-6000:]
        return done

    def bulwark(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command of bulwark in the copy."""
        return self.python("-m", "bulwark.cli", *arguments, check=check)

    def python(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run Python in the copy."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            check=False,
            capture_output=True,
        )
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def plan(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry run would start."""
        return jobs(self.snakemake("--dry-run", "--quiet", "rules", *arguments).stdout)

    def planned_jobs(self, *arguments: str) -> list[Job]:
        """The jobs that a dry run would start, with what is expected of each."""
        told = self.folder / "jobs.json"
        self.snakemake("--dry-run", "--quiet", "rules", *arguments, BULWARK_JOBS=str(told))
        written = json.loads(told.read_text(encoding="utf-8"))
        folder = self.folder / "config"
        files = [self.folder / name for name in written["configfiles"]]
        with contextlib.chdir(self.folder):  # where timings are looked for
            return jobs_of(loading.load(overlays.read(files, folder), folder), written["jobs"])

    def planned_outputs(self, *arguments: str) -> list[str]:
        """The output files that a dry run would make."""
        text = self.snakemake("--dry-run", "-p", *arguments).stdout
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
    """A copy in which the smallest configuration of the miniature has run; tests leave its results as they are."""
    copy = copy_of_the_tree(tmp_path_factory.mktemp("finished") / "bulwark")
    copy.snakemake("--cores", "2", "--configfile", SMALLEST, "--quiet", "rules", "--", "all")
    return copy


@pytest.fixture(scope="session")
def steered(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the finished run in which steering has run, too, on the base model that was there."""
    copy = Checkout(tmp_path_factory.mktemp("steered") / "bulwark")
    shutil.copytree(finished.folder, copy.folder, symlinks=True)
    assert "pretrain_model" not in copy.plan("--configfile", *STEERING, "--", "all")
    copy.snakemake("--cores", "2", "--configfile", *STEERING, "--quiet", "rules", "--", "all")
    return copy
