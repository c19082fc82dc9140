"""Mistakes planted in our own code: each has to change the verdict of the claim that it is about.

    make planted                                      all of them, in miniature: about half an hour of two idle cores
    make planted SOME="steering_with data_not"        those whose name begins with one of these
    .venv/bin/python tests/planted.py --base FOLDER   results whose base model is taken, not pre-trained anew

An entry of tests/planted/errors.yaml is a mistake: `old`, which stands exactly once in `file`, becomes `new`. The study
of its claim, cut to the least (tests/planted/claims.yaml), runs in a copy of the tree, first unchanged and then with
each mistake. A mistake is seen if the verdict is another one, or if a job stops by itself. Exit status 0 if at least
nine of ten are seen.

The copy's files stay as they are, and with them the digests of code by which results are made again: a mistake is put
into the modules as they are imported, so that the base model is not pre-trained for each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "tests" / "planted"
SHARE = 0.9  # of the mistakes, has to be seen
STOPPED = "stopped"  # in the place of a verdict
KEPT = ("models", "data")  # of a results folder: what no mistake may touch
# Replaces the source of one module when it is imported, in every process of the run.
HOOK = """
import importlib.machinery, os
_FILE, _OLD, _NEW = (os.environ["PLANTED_" + key] for key in ("FILE", "OLD", "NEW"))
_code = importlib.machinery.SourceFileLoader.get_code
def _planted(self, name):
    path = self.get_filename(name)
    if not path.endswith(_FILE):
        return _code(self, name)
    text = self.get_data(path).decode("utf-8")
    if text.count(_OLD) != 1:
        raise ValueError(path + " has not the text once: " + _OLD)
    return self.source_to_code(text.replace(_OLD, _NEW).encode("utf-8"), path)
importlib.machinery.SourceFileLoader.get_code = _planted
"""


@dataclass(frozen=True)
class Mistake:
    """One change of one file. claim: which has to notice. why: what it comes to."""

    name: str
    claim: str
    file: str
    old: str
    new: str
    why: str

    def applied(self, text: str) -> str:
        """The file's text with the mistake. Raises ValueError unless the old text stands in it exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text stands {count} times in {self.file}, and has to once")
        return text.replace(self.old, self.new)


def mistakes() -> list[Mistake]:
    """All entries, in their order. Raises TypeError for one with a key too many or too few."""
    return [Mistake(**entry) for entry in yaml.safe_load((LISTS / "errors.yaml").read_text(encoding="utf-8"))]


def overlay(claim: str) -> dict[str, Any]:
    """What is laid over the miniature so that it runs what the claim needs, and nothing else."""
    ((study, lists),) = yaml.safe_load((LISTS / "claims.yaml").read_text(encoding="utf-8"))[claim].items()
    bare = {"seeds": [0], "analyses": [], "tables": [], "figures": [], "claims": [claim]}
    return {"name": "planted", "run": [study], "studies": {study: bare | lists}}


def chosen(names: Sequence[str]) -> list[Mistake]:
    """Those whose names begin with one of `names`; all if there are none. Raises ValueError for one that none has."""
    every = mistakes()
    for name in names:
        if not any(mistake.name.startswith(name) for mistake in every):
            raise ValueError(f"no mistake's name begins with {name}: {', '.join(mistake.name for mistake in every)}")
    return [mistake for mistake in every if not names or any(mistake.name.startswith(name) for name in names)]


def seen(found: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """How many mistakes have changed the verdict, of pairs (without, with), and how many there are."""
    pairs = list(found)
    return sum(before != after for before, after in pairs), len(pairs)


def verdict(tree: Path, claim: str, base: Path, environment: Mapping[str, str], cores: int) -> str:
    """Run the claim's study in the tree, from the base model on; "stopped" if a job fails."""
    results = tree / "results"
    shutil.rmtree(results, ignore_errors=True)
    for part in KEPT:
        if (base / part).is_dir():
            shutil.copytree(base / part, results / part, symlinks=True)
    (tree / "planted.yaml").write_text(yaml.safe_dump(overlay(claim)), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--quiet", "all", "--configfile"]
    command += ["config/miniature.yaml", "planted.yaml", "--", "claims"]
    with (tree / "planted.log").open("w") as log:
        done = subprocess.run(command, cwd=tree, env={**os.environ, **environment}, stdout=log, stderr=log, check=False)
    if done.returncode:
        return STOPPED
    return json.loads((results / "reports" / "planted" / "claims.json").read_text(encoding="utf-8"))[0]["verdict"]


def reason(log: Path) -> str:
    """The last line of a log that names an error; "no reason told" if none does."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if re.search(r"[Ee]rror\b", line)]
    return lines[-1][:200] if lines else "no reason told"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="of which mistakes; all if left out")
    parser.add_argument("--base", type=Path, default=ROOT / "results", help="results whose base model is taken")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    try:
        every = chosen(given.names)
        for mistake in every:
            mistake.applied((ROOT / mistake.file).read_text(encoding="utf-8"))
    except ValueError as error:
        print(error)
        return 1
    from mutants import copies  # beside this file

    without: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = copies(Path(folder), 1)[0].tree
        paths = {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        hook = Path(folder) / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        for mistake in every:
            started = time.monotonic()
            if mistake.claim not in without:
                without[mistake.claim] = verdict(tree, mistake.claim, given.base, paths, given.cores)
                print(f"{time.monotonic() - started:6.0f} s  {mistake.claim}: {without[mistake.claim]}", flush=True)
                if without[mistake.claim] == STOPPED:
                    print((tree / "planted.log").read_text(encoding="utf-8")[-2000:])
                    return 1
            started = time.monotonic()
            told = {f"PLANTED_{key}": getattr(mistake, key.lower()) for key in ("FILE", "OLD", "NEW")}
            planted = paths | told | {"PYTHONPATH": f"{hook}{os.pathsep}{tree / 'src'}"}
            after = verdict(tree, mistake.claim, given.base, planted, given.cores)
            found.append((without[mistake.claim], after))
            flips = "seen" if found[-1][0] != after else "NOT SEEN"
            why = f" ({reason(tree / 'planted.log')})" if after == STOPPED else ""
            print(f"{time.monotonic() - started:6.0f} s  {flips:8}  {mistake.name}: {after}{why}", flush=True)
    noticed, count = seen(found)
    print(f"{noticed} of {count} mistakes have changed the verdict of their claim")
    return 0 if noticed >= SHARE * count else 1


if __name__ == "__main__":
    sys.exit(main())
