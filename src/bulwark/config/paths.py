"""Where results lie: the paths that the workflow's rules, its plan and `bulwark status` have in common."""

from __future__ import annotations


def checkpoint(model: str, recipe: str, seed: int | str) -> str:
    """The manifest of a checkpoint."""
    return f"results/checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json"


def scores(model: str, recipe: str, seed: int | str, benchmark: str) -> str:
    """The scores of a checkpoint on a benchmark."""
    return f"results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json"


def analysis(model: str, recipe: str, seed: int | str, analysis: str) -> str:
    """An analysis of a checkpoint, in the form of scores."""
    return f"results/analyses/{model}/{recipe}/seed{seed}/{analysis}.json"


def records(dataset: str, split: str) -> str:
    """The records of a split of a data set."""
    return f"results/data/{dataset}/{split}.jsonl"


def table(name: str) -> list[str]:
    return [f"results/tables/{name}.{ending}" for ending in ("csv", "md", "tex")]


def figure(name: str) -> list[str]:
    return [f"results/figures/{name}.{ending}" for ending in ("pdf", "png")]
