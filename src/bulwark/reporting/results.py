"""Scores files for tables, figures and claims: by model, recipe, benchmark and metric, over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bulwark import seals
from bulwark.errors import BulwarkError, nearest
from bulwark.evaluation.metrics import records_beside
from bulwark.evaluation.statistics import CONFIDENCE, Estimate, Sample, estimate, sample
from bulwark.settings import read_yaml

_UNITS = {"percent": 0.01, "0 to 9": 1 / 9, "ratio": 1.0, "nats": 1.0}  # of published numbers


class ResultsError(BulwarkError):
    """A result that a table, figure or claim needs is missing, or does not fit the others."""


@dataclass(frozen=True)
class Cell:
    """One scores file and its model, recipe, seed and benchmark; command: that makes it, up to its path."""

    model: str
    recipe: str
    seed: int
    benchmark: str
    scores: Path
    command: str = "snakemake -c2 --"

    @cached_property
    def content(self) -> dict[str, Any]:
        """The scores file. Raises ResultsError if it is missing, unreadable or another cell's."""
        try:
            content = json.loads(seals.checked(self.scores).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResultsError(
                f"{self.scores} is missing: the result of {self.benchmark} for {self.model}, {self.recipe}, "
                f"seed {self.seed}. Make it with: {self.command} {self.scores}"
            ) from None
        except ValueError as error:
            raise ResultsError(f"{self.scores} is not readable ({error}): delete it and make it again.") from None
        for key in ("model", "recipe", "seed", "benchmark"):
            if content.get(key) != getattr(self, key):
                raise ResultsError(
                    f'{self.scores}: says {key} "{content.get(key)}" where "{getattr(self, key)}" belongs. '
                    "The file was moved or copied by hand: delete it and make it again."
                )
        return content

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows per record; none if the benchmark writes none."""
        path = records_beside(self.scores)
        if not seals.checked(path).exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

    @property
    def diverged(self) -> bool:
        """Whether there is no model to measure, because the training of this trial diverged."""
        return "diverged" in self.content.get("reported", {})

    def metric(self, name: str) -> dict[str, Any]:
        """One metric of the file. Raises ResultsError with the nearest name if there is none."""
        metrics = self.content["metrics"]
        if name not in metrics:
            raise ResultsError(f'{self.scores} has no metric "{name}".{nearest(name, metrics)}')
        return metrics[name]


class Results:
    """The cells of a study: plain maps with model, recipe, seed, benchmark and scores (a path).

    missing: the scores that are shown as missing; any other that is not there is an error, which names `command` and
    the path.
    """

    def __init__(
        self, cells: Iterable[Mapping[str, Any]], missing: Iterable[str | Path] = (), command: str = Cell.command
    ) -> None:
        self.cells = [
            Cell(**{**cell, "seed": int(cell["seed"]), "scores": Path(cell["scores"]), "command": command})
            for cell in cells
        ]
        self.missing = frozenset(map(Path, missing))
        self.models, self.recipes, self.benchmarks = (
            list(dict.fromkeys(getattr(cell, key) for cell in self.cells)) for key in ("model", "recipe", "benchmark")
        )
        self._by_key: dict[tuple[str, str, str], dict[int, Cell]] = {}
        for cell in self.cells:
            seeds = self._by_key.setdefault((cell.model, cell.recipe, cell.benchmark), {})
            if cell.seed in seeds:
                raise ResultsError(f"{cell.scores} and {seeds[cell.seed].scores} are given for the same cell.")
            seeds[cell.seed] = cell

    def seeds(self, model: str, recipe: str, benchmark: str) -> dict[int, Cell]:
        """The cells of all seeds. Raises ResultsError if there is none."""
        cells = self._by_key.get((model, recipe, benchmark))
        if not cells:
            raise ResultsError(
                f'There is no result of "{benchmark}" for {model}, {recipe}: results/scores/{model}/{recipe}/seed…/'
                f"{benchmark}.json. Add the recipe and the benchmark to the study, or take them out of what shows them."
            )
        return dict(sorted(cells.items()))

    def lacks(self, model: str, recipe: str, benchmark: str) -> bool:
        """Whether it is shown as missing: at any seed, because a mean over fewer would be of something else."""
        return any(cell.scores in self.missing for cell in self.seeds(model, recipe, benchmark).values())

    def diverged(self, model: str, recipe: str, benchmark: str) -> bool:
        """Whether the training of this trial diverged, at any seed. Raises ResultsError if the cell is missing."""
        return any(cell.diverged for cell in self.seeds(model, recipe, benchmark).values())

    def higher_is_better(self, benchmark: str, metric: str) -> bool | None:
        """The direction of a metric; None if it has none. Raises ResultsError if the benchmark has no result."""
        of_benchmark = [cell for cell in self.cells if cell.benchmark == benchmark]
        for cell in of_benchmark:
            if cell.scores not in self.missing:
                return cell.metric(metric)["higher_is_better"]
        if of_benchmark:
            return None
        raise ResultsError(f'There is no result of "{benchmark}".{nearest(benchmark, self.benchmarks)}')

    def sample(self, model: str, recipe: str, benchmark: str, metric: str) -> Sample | None:
        """The metric per seed and record; None if the rows lack it (a metric that is no mean over records).

        Raises ResultsError if the rows and the scores file disagree.
        """
        cells = self.seeds(model, recipe, benchmark)
        if not all(cell.rows and metric in cell.rows[0] for cell in cells.values()):
            return None
        taken = sample({seed: cell.rows for seed, cell in cells.items()}, metric, f"{model}, {recipe}, {benchmark}: ")
        for seed, value in estimate(taken).by_seed.items():
            stated = cells[seed].metric(metric)["value"]
            if not math.isclose(*(math.inf if v is None else v for v in (value, stated)), abs_tol=1e-9):
                raise ResultsError(
                    f"{cells[seed].scores}: {metric} is {stated}, but its records say {value}. "
                    "One of the two files is old: delete both and make them again."
                )
        return taken

    def estimate(
        self, model: str, recipe: str, benchmark: str, metric: str, confidence: float = CONFIDENCE
    ) -> Estimate:
        """The mean over seeds with its error.

        Without rows per record the seeds' standard errors are averaged: exact for one seed, an upper bound for several.
        """
        taken = self.sample(model, recipe, benchmark, metric)
        if taken is not None:
            return estimate(taken, confidence)
        stated = _from_files(self.seeds(model, recipe, benchmark), metric)
        return stated if stated.stated is None else replace(stated, interval=stated.at(confidence))


def read_published(path: Path | None) -> dict[tuple[str, str, str, str], tuple[float, float | None]]:
    """Read a file of config/published: {(model, recipe, benchmark, metric): (value, standard error or None)}.

    Numbers there are as printed, in a `unit` of _UNITS, which converts them to fractions.
    """
    if path is None:
        return {}
    content = read_yaml(Path(path))
    numbers = {}
    for entry in content["results"]:
        if entry["unit"] not in _UNITS:
            raise ResultsError(f'{path}: the unit "{entry["unit"]}" is unknown.{nearest(entry["unit"], _UNITS)}')
        scale = _UNITS[entry["unit"]]
        for model, recipes in entry["values"].items():
            for recipe, printed in recipes.items():
                value, stderr = printed if isinstance(printed, list) else (printed, None)
                key = (model, recipe, entry["benchmark"], entry["metric"])
                if key in numbers:
                    raise ResultsError(f"{path}: {' / '.join(key)} is given twice.")
                numbers[key] = (value * scale, None if stderr is None else stderr * scale)
    return numbers


def _from_files(cells: Mapping[int, Cell], metric: str) -> Estimate:
    entries = {seed: cell.metric(metric) for seed, cell in cells.items()}
    by_seed = {seed: entry["value"] for seed, entry in entries.items()}
    n = max(entry.get("n", cells[seed].content["n"]) for seed, entry in entries.items())
    values = list(by_seed.values())
    if None in values:
        return Estimate(None, None, None, n, by_seed, None)
    value = _mean(values)
    spread = math.sqrt(sum((v - value) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
    errors = [entry["stderr"] for entry in entries.values()]
    intervals = [entry["interval"] for entry in entries.values()]
    interval = tuple(map(_mean, zip(*intervals, strict=True))) if all(intervals) else None
    return Estimate(value, None if None in errors else _mean(errors), None, n, by_seed, spread, stated=interval)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
