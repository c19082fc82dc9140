"""Formulas changed on purpose: each change has to turn a test red that claims to cover the formula.

    make mutants                                       all of them (`make mutants SOME="aside steering/alpha"` for some)
    .venv/bin/python tests/mutants.py [NAME …]         those whose name begins with one of these

A mutant is an entry of tests/mutants/*.yaml: `old`, a text that stands exactly once in `file`, becomes `new`, and one
of `tests` has to fail. First these tests run unchanged, where all have to pass. Then each mutant is written into a copy
of the tree, whose tests are run, up to the first that fails; the working tree is never changed. A line tells what
became of each, and the end names those that no test has seen. Exit status 0 if there are none.

One process imports torch, transformers and the rest once, and not bulwark; every run of tests is a fork of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "tests" / "mutants"
# What the package imports when it is imported itself, or inside functions: the time that a fork saves.
HEAVY = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.qwen2.modeling_qwen2", "transformers.optimization", "transformers.generation.utils",
    "deepspeed", "peft", "optuna", "pandas", "scipy.stats", "sklearn.linear_model", "sklearn.metrics",
    "pyarrow.parquet", "pydantic", "pytest",
)  # fmt: skip
# Threads that a library starts when it is imported are not there in a fork.
QUIET = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "DS_ACCELERATOR": "cpu"}
PASSED, FAILED = 0, 1  # pytest's exit statuses
DIED, SURVIVED, UNUSABLE, ENDLESS = "died", "SURVIVED", "UNUSABLE", "TOO LONG"


@dataclass(frozen=True)
class Mutant:
    """One change. name: "<file of the list>/<its own>". tests: node ids as pytest takes them. why: what it is about."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str

    def applied(self, text: str) -> str:
        """The file's text with the change. Raises ValueError unless the old text stands in it exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text stands {count} times in {self.file}, and has to once")
        return text.replace(self.old, self.new)


@dataclass
class Slot:
    """A copy of the tree, in which one run of tests at a time goes on."""

    tree: Path
    log: Path
    pid: int = 0
    since: float = 0.0

    def write(self, mutant: Mutant) -> None:
        path = self.tree / mutant.file
        path.write_text(mutant.applied(path.read_text(encoding="utf-8")), encoding="utf-8")

    def restore(self, mutant: Mutant) -> None:
        shutil.copy2(ROOT / mutant.file, self.tree / mutant.file)

    def start(self, tests: Sequence[str], *options: str) -> None:
        """Run tests of this copy in a fork of this process."""
        sys.stdout.flush()
        self.since, self.pid = time.monotonic(), os.fork()
        if self.pid == 0:
            status = 70
            try:
                status = _run(self.tree, self.log, [*options, *tests])
            finally:
                os._exit(status)

    def ended(self, limit: float) -> int | None:
        """The exit status of the run; None while it goes on, -1 where it was ended after `limit` seconds."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - self.since < limit:
            return None
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return -1


def mutants() -> list[Mutant]:
    """All entries of the lists, in their order. Raises ValueError for one with a key too many or too few."""
    found = []
    for path in sorted(LISTS.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            keys = {"name", "file", "old", "new", "tests", "why"}
            if entry.keys() != keys:
                raise ValueError(f"{path.name}, {entry.get('name')}: has to have the keys {sorted(keys)}")
            own = {key: entry[key] for key in ("file", "old", "new", "why")}
            found.append(Mutant(name=f"{path.stem}/{entry['name']}", tests=tuple(entry["tests"]), **own))
    return found


def chosen(names: Sequence[str]) -> list[Mutant]:
    """Those whose names begin with one of `names`; all if there are none. Raises ValueError for one that none has."""
    every = mutants()
    if nobody := [name for name in names if not any(mutant.name.startswith(name) for mutant in every)]:
        raise ValueError(f"no mutant's name begins with {nobody[0]}; --list tells all of them")
    return [mutant for mutant in every if not names or any(mutant.name.startswith(name) for name in names)]


def copies(folder: Path, count: int) -> list[Slot]:
    """So many copies of what git knows of the tree, or would if it were added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    slots = []
    for number in range(count):
        tree = folder / str(number) / "tree"
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, tree / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        slots.append(Slot(tree, folder / str(number) / "log"))
    return slots


def tried(everyone: Sequence[Mutant], slots: list[Slot], limit: float) -> Iterator[tuple[Mutant, str, float, str]]:
    """(mutant, what became of it, seconds, the test that saw it or the end of the log) of each, as they end."""
    waiting, running = list(everyone), {}
    while waiting or running:
        for number, slot in enumerate(slots):
            if number not in running and waiting:
                running[number] = mutant = waiting.pop(0)
                slot.write(mutant)
                slot.start(mutant.tests, "-x")
        for number, mutant in list(running.items()):
            slot = slots[number]
            if (status := slot.ended(limit)) is None:
                continue
            del running[number]
            slot.restore(mutant)
            became = {PASSED: SURVIVED, FAILED: DIED, -1: ENDLESS}.get(status, UNUSABLE)
            yield mutant, became, time.monotonic() - slot.since, _told(slot.log, became)
        time.sleep(0.02)


def unchanged(everyone: Sequence[Mutant], slots: list[Slot], limit: float) -> list[str]:
    """The tests that fail without any change, with the end of what they say, file by file."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for mutant in everyone for test in mutant.tests):
        files.setdefault(test.split("::")[0], []).append(test)
    waiting, running, wrong = list(files), {}, []
    while waiting or running:
        for number, slot in enumerate(slots):
            if number not in running and waiting:
                running[number] = waiting.pop(0)
                slot.start(files[running[number]])
        for number, file in list(running.items()):
            if (status := slots[number].ended(10 * limit)) is None:
                continue
            del running[number]
            print(f"unchanged  {time.monotonic() - slots[number].since:6.1f} s  {file}", flush=True)
            if status != PASSED:
                wrong.append(f"{file}\n{_end(slots[number].log)}")
        time.sleep(0.02)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="of which mutants; all if left out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--seconds", type=float, default=240.0, help="after which a run counts as endless")
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    parser.add_argument("--only-mutants", action="store_true", help="do not run the tests without changes first")
    given = parser.parse_args()
    try:
        everyone = chosen(given.names)
        for mutant in everyone:
            mutant.applied((ROOT / mutant.file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(error)
        return 1
    if given.list:
        print("\n".join(f"{mutant.name}: {mutant.why}" for mutant in everyone))
        return 0
    started = time.monotonic()
    os.environ |= QUIET
    _import_what_takes_long()
    results: list[tuple[Mutant, str]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        slots = copies(Path(folder), min(given.jobs, len(everyone)))
        if not given.only_mutants and (wrong := unchanged(everyone, slots, given.seconds)):
            print("These tests fail without any change, so that they tell nothing:\n" + "\n".join(wrong))
            return 1
        for mutant, became, seconds, told in tried(everyone, slots, given.seconds):
            results.append((mutant, became))
            print(f"[{len(results):3}/{len(everyone)}] {seconds:5.1f} s  {became:8}  {mutant.name}  {told}", flush=True)
    left = [f"{became}: {mutant.name}: {mutant.why}" for mutant, became in results if became != DIED]
    print(
        f"{len(results)} mutants in {time.monotonic() - started:.0f} s, {len(left)} not seen by their tests",
        *left,
        sep="\n",
    )
    return 1 if left else 0


def _import_what_takes_long() -> None:
    import importlib

    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests", ROOT / "src")]
    for name in HEAVY:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    if early := [name for name in sys.modules if name.split(".")[0] == "bulwark"]:
        raise RuntimeError(f"{early[0]} is imported before there is a mutant, which would change nothing any more")


def _run(tree: Path, log: Path, arguments: list[str]) -> int:
    """In the fork: pytest on the copy's tests and code; what it says goes into the log."""
    import pytest

    os.setsid()
    os.chdir(tree)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(target, stream)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree / "src"))
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    own = [
        "-q",
        "--no-header",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tree}",
        f"-c{tree / 'pyproject.toml'}",
    ]
    return int(pytest.main([*own, f"--basetemp={log.parent / 'temporary'}", *arguments]))


def _told(log: Path, became: str) -> str:
    if became == UNUSABLE:
        return f"\n{_end(log)}"
    seen = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return f"({seen[0]})" if seen and became == DIED else ""


def _end(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
