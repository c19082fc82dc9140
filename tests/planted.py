"""Mistakes planted in our own code: each has to change the verdict of the claim that it is about.

    make planted                                      all of them, in miniature
    make planted SOME="steering_with data_not"        those whose name begins with one of these
    .venv/bin/python tests/planted.py --base FOLDER   a folder of results to take from, in the place of results/

An entry of tests/planted/errors.yaml is a mistake: `old`, which stands exactly once in `file`, becomes `new`. The
studies of the claims, cut to the least (tests/planted/claims.yaml), run in a copy of the tree, first unchanged and then
that of a mistake's claim with the mistake. What becomes of a mistake is one of three:

    flip        the claim is reproduced without the mistake, and is not with it
    stopped     a job ends with an error: a check has seen the mistake, and there is no verdict
    UNNOTICED   the claim is reproduced all the same

Exit status 0 if at least nine of ten of those that no check has stopped are flips. A claim that is not reproduced
without any mistake tells nothing, and ends the run.

A plan makes again what was made by code that is now another, and what was made from that; everything else is taken from
the run without the mistake. Base models and records are taken as given even where the mistake is in code that made
them: they are the world that the defenses and attacks work on.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "tests" / "planted"
SHARE = 0.9  # of the mistakes that no check stops, has to flip the verdict
REPRODUCED, STOPPED = "reproduced", "stopped"
FLIP, UNNOTICED = "flip", "UNNOTICED"
MODEL = "miniature"
WORLD = ("pretrain_model", "prepare_dataset", "start_recipe")  # rules whose results are taken as given
OF_RECIPES = ("checkpoints", "vectors", "answers", "scores")  # folders of results by model, recipe and seed


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


@dataclass(frozen=True)
class Found:
    """What became of a mistake. before, after: the claim's verdicts without and with it; "stopped" for none."""

    mistake: Mistake
    before: str
    after: str

    @property
    def became(self) -> str:
        if self.after == STOPPED:
            return STOPPED
        return FLIP if self.before == REPRODUCED != self.after else UNNOTICED


def mistakes() -> list[Mistake]:
    """All entries, in their order. Raises TypeError for one with a key too many or too few."""
    return [Mistake(**entry) for entry in yaml.safe_load((LISTS / "errors.yaml").read_text(encoding="utf-8"))]


def overlay(*claims: str) -> dict[str, Any]:
    """What is laid over the miniature so that it runs what the claims need, and nothing else."""
    least = yaml.safe_load((LISTS / "claims.yaml").read_text(encoding="utf-8"))
    studies: dict[str, Any] = {}
    for claim in claims:
        ((study, lists),) = least[claim].items()
        bare = {"seeds": [0], "analyses": [], "tables": [], "figures": []}
        whole = studies.setdefault(study, bare)
        for key, values in {**lists, "claims": [claim]}.items():
            whole[key] = list(dict.fromkeys([*whole.get(key, []), *values]))
    return {"name": "planted", "run": list(studies), "studies": studies}


def recipes(claim: str) -> list[str]:
    """All recipes that a claim's study makes on the way, the base model first."""
    (lists,) = overlay(claim)["studies"].values()
    attacks = lists.get("attacks", ())
    named = [*lists["recipes"], *(f"{one}+{attack}" for one in lists.get("attacked", ()) for attack in attacks)]
    found = {"base": None}
    for name in named:
        steps = name.split("+")
        for count in range(1, len(steps) + 1):
            made = "+".join(steps[:count])
            found |= {made.split("@")[0]: None, made: None}  # a snapshot lies in the folder of its training
    return list(found)


def chosen(names: Sequence[str]) -> list[Mistake]:
    """Those whose names begin with one of `names`; all if there are none. Raises ValueError for one that none has."""
    every = mistakes()
    for name in names:
        if not any(mistake.name.startswith(name) for mistake in every):
            raise ValueError(f"no mistake's name begins with {name}: {', '.join(mistake.name for mistake in every)}")
    return [mistake for mistake in every if not names or any(mistake.name.startswith(name) for name in names)]


def counted(found: Iterable[Found]) -> dict[str, int]:
    """How many mistakes are flips, stopped and unnoticed."""
    became = [one.became for one in found]
    return {kind: became.count(kind) for kind in (FLIP, STOPPED, UNNOTICED)}


def enough(found: Iterable[Found]) -> bool:
    """Whether nine of ten of the mistakes that no check has stopped have flipped their claim's verdict."""
    counts = counted(found)
    return counts[FLIP] >= SHARE * (counts[FLIP] + counts[UNNOTICED])


def rules() -> list[str]:
    """The rules of the workflow, without those whose results are taken as given."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    named = [name for text in texts for name in re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.MULTILINE)]
    return [name for name in named if name not in WORLD]


def table(found: Iterable[Found]) -> str:
    """A line per mistake, for a page: mistake, what it comes to, claim, verdict with it, what became of it."""
    lines = ["| mistake | what it comes to | claim | verdict with it | |", "|---|---|---|---|---|"]
    for one in found:
        cells = (f"`{one.mistake.name}`", one.mistake.why, f"`{one.mistake.claim}`", one.after, one.became)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


class Tree:
    """A copy of the tree in which studies of claims run."""

    def __init__(self, tree: Path, cores: int) -> None:
        self.tree, self.cores = tree, cores
        self.log, self.results = tree / "planted.log", tree / "results"

    def take(self, claims: Iterable[str], base: Path) -> None:
        """Copy what there is of the claims' studies, of seed 0, from other results."""
        shutil.rmtree(self.results, ignore_errors=True)
        folders = [Path("models") / MODEL, *(path.relative_to(base) for path in base.glob("data/*"))]
        made = dict.fromkeys(recipe for claim in claims for recipe in recipes(claim))
        folders += [Path(kind) / MODEL / recipe / "seed0" for kind in OF_RECIPES for recipe in made]
        for folder in folders:
            if (base / folder).is_dir():
                shutil.copytree(base / folder, self.results / folder, symlinks=True)

    def verdicts(self, *claims: str, given: Sequence[str] = ()) -> dict[str, str]:
        """The verdicts of claims; all "stopped" if a job fails. given: options of Snakemake."""
        (self.tree / "planted.yaml").write_text(yaml.safe_dump(overlay(*claims)), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--cores", str(self.cores), "--quiet", "all", *given]
        command += ["--configfile", "config/miniature.yaml", "planted.yaml", "--", "claims"]
        paths = {"PYTHONPATH": str(self.tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("w") as log:
            run = subprocess.run(command, cwd=self.tree, env=os.environ | paths, stdout=log, stderr=log, check=False)
        if run.returncode:
            return dict.fromkeys(claims, STOPPED)
        told = json.loads((self.results / "reports" / "planted" / "claims.json").read_text(encoding="utf-8"))
        return {claim["id"]: claim["verdict"] for claim in told}

    def with_mistake(self, mistake: Mistake) -> str:
        """The verdict of the mistake's claim with it, from the results that lie there; "stopped" if a job fails.

        Raises ValueError if no result is made again: then the mistake is in code that no result of the claim is made
        with.
        """
        path, started = self.tree / mistake.file, time.time()
        text = path.read_text(encoding="utf-8")
        path.write_text(mistake.applied(text), encoding="utf-8")
        try:
            after = self.verdicts(mistake.claim, given=["--allowed-rules", *rules()])[mistake.claim]
        finally:
            path.write_text(text, encoding="utf-8")
        if after != STOPPED and not any(
            file.stat().st_mtime > started for kind in OF_RECIPES for file in (self.results / kind).rglob("*.json*")
        ):
            raise ValueError(
                f"{mistake.name}: no result of {mistake.claim} is made with this code, so that it tells nothing"
            )
        return after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="of which mistakes; all if left out")
    parser.add_argument("--base", type=Path, default=ROOT / "results", help="results to take from")
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

    found: list[Found] = []
    claims = list(dict.fromkeys(mistake.claim for mistake in every))
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree, kept = Tree(copies(Path(folder), 1)[0].tree, given.cores), Path(folder) / "unchanged"
        tree.take(claims, given.base)
        started = time.monotonic()
        before = tree.verdicts(*claims)
        for claim, verdict in before.items():
            print(f"{time.monotonic() - started:6.0f} s  without any mistake: {verdict}  {claim}", flush=True)
        if wrong := [claim for claim in claims if before[claim] != REPRODUCED]:
            print(f"Mistakes tell nothing of what is not reproduced: {', '.join(wrong)}\n{_end(tree.log)}")
            return 1
        shutil.rmtree(tree.results / "reports")
        tree.results.rename(kept)
        for mistake in every:
            started = time.monotonic()
            shutil.rmtree(tree.results, ignore_errors=True)
            shutil.copytree(kept, tree.results, symlinks=True)
            try:
                after = tree.with_mistake(mistake)
            except ValueError as error:
                print(error)
                return 1
            found.append(Found(mistake, before[mistake.claim], after))
            why = f" ({reason(tree.log)})" if after == STOPPED else ""
            seconds, became = time.monotonic() - started, found[-1].became
            print(f"{seconds:6.0f} s  {became:9}  {mistake.name}: {found[-1].before} → {after}{why}", flush=True)
    counts = counted(found)
    print(
        f"\n{table(found)}\n\n{len(found)} mistakes: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    )
    return 0 if enough(found) else 1


def reason(log: Path) -> str:
    """The last line of a log that names an error; "no reason told" if none does."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if re.search(r"[Ee]rror\b", line)]
    return lines[-1][:200] if lines else "no reason told"


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-2000:]


if __name__ == "__main__":
    sys.exit(main())
