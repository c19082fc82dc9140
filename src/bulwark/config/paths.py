"""Where results lie: the paths that the workflow's rules, its plan and `bulwark status` have in common."""

from __future__ import annotations

import string

from bulwark.errors import ConfigurationError
from bulwark.settings import find

# What stands for a name in the paths under results/ that settings ask for, filled in by `bulwark.config.plan`.
PLACES: dict[str, tuple[str, ...]] = {
    "steps": ("model", "parent", "prefix", "seed"),
    "benchmarks": ("model", "recipe", "parent", "seed"),
    "projections": ("model", "parent", "seed"),
}


def checkpoint(model: str, recipe: str, seed: int | str) -> str:
    """The manifest of a checkpoint."""
    return f"results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json"


def scores(model: str, recipe: str, seed: int | str, benchmark: str) -> str:
    """The scores of a checkpoint on a benchmark."""
    return f"results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json"


def answers(model: str, recipe: str, seed: int | str, benchmark: str) -> str:
    """The answers of a checkpoint to a benchmark."""
    return f"results/answers/{model}/{recipe}/seed{seed}/{benchmark}.jsonl"


def analysis(model: str, recipe: str, seed: int | str, analysis: str) -> str:
    """An analysis of a checkpoint, in the form of scores."""
    return f"results/analyses/{model}/{recipe}/seed{seed}/{analysis}.json"


def records(dataset: str, split: str) -> str:
    """The records of a split of a data set."""
    return f"results/data/{dataset}/{split}.jsonl"


def report(name: str) -> str:
    """The folder of what the configuration `name` shows; everything else under results/ belongs to no configuration."""
    return f"results/reports/{name}"


def table(report_of: str, name: str) -> list[str]:
    return [f"{report(report_of)}/tables/{name}.{ending}" for ending in ("csv", "md", "tex")]


def figure(report_of: str, name: str) -> list[str]:
    return [f"{report(report_of)}/figures/{name}.{ending}" for ending in ("pdf", "png", "csv")]


def claims(report_of: str) -> list[str]:
    """The verdicts, for programs and to read."""
    return [f"{report(report_of)}/claims.{ending}" for ending in ("json", "md")]


def results(report_of: str) -> list[str]:
    """Everything measured, a row per metric of a checkpoint."""
    return [f"{report(report_of)}/results.{ending}" for ending in ("csv", "parquet")]


def page(report_of: str) -> str:
    """The one page with everything."""
    return f"{report(report_of)}/report.html"


def check_places(kind: str, path: str, where: str) -> None:
    """Whether the plan can fill in what stands in braces in a path that a step, benchmark or projection asks for.

    Raises ConfigurationError, which says where the path was asked for.
    """
    try:
        places = [name for _, name, _, _ in string.Formatter().parse(path) if name is not None]
    except ValueError as error:
        raise ConfigurationError(f'{where}: "{path}" is no path: {error}. Write names without braces.') from None
    for name in places:
        find(dict.fromkeys(PLACES[kind]), name, f"name to be filled into the paths that {kind} read, {path},", where)
