"""How much work a job is, from its settings: tokens that are trained on, and answers.

Nothing is read but the configuration, so a data set counts as large as its file under config/datasets says (`size`,
`expected`, the numbers of its splits), and where it says nothing as ROWS and TOKENS, in a miniature as MINIATURE_ROWS.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from bulwark.config.catalogue import Catalogue, Resolved

ROWS = 20_000.0  # of a data set that says nothing
MINIATURE_ROWS = 400.0  # of one that a miniature world makes as large as it likes: 64 to 600 records
TOKENS = 300.0  # of one of its records
PASSAGE = 1_000.0  # of a record of raw text, which trainings cut
# A job of cost 1 of the stage `generate`: SEP's answers, of up to so many tokens, so many at a time.
ANSWERS, NEW_TOKENS, TOGETHER = 18_320, 1_024, 32
# A job of cost 1 of the stage `train` whose settings name no training: ASIDE's, three epochs of 46,581 records.
PLAIN_TOKENS = 3 * 46_581 * 380.0
TRIAL_PROMPTS = 100  # a search answers so many harmful prompts in each trial, and reads as many harmless ones


@cache
def rows_of(catalogue: Catalogue, dataset: str, split: str) -> float:
    """How many records a split of a data set has, as far as the configuration says."""
    entity = catalogue.datasets.get(dataset)
    if entity is None:
        return ROWS
    if mixture := entity.source.mixture:
        wanted = str(entity.splits.get(split, split))
        first, total = 0.0, 0.0
        for part, amount in mixture.items():
            rows = rows_of(catalogue, part, wanted)
            taken = rows if amount == "all" else min(rows, amount if isinstance(amount, int) else amount * first)
            first, total = first or taken, total + taken
        rows = total
    else:
        share = entity.splits.get(split, 1.0)
        if isinstance(share, int):
            rows = float(share)
        elif entity.size.get(split):
            rows = entity.size[split] * (share if isinstance(share, float) else 1.0)
        else:
            unsaid = ROWS if entity.source.miniature is None else MINIATURE_ROWS
            rows = (entity.expected.rows or unsaid) * (share if isinstance(share, float) else 1.0)
    return min(rows, entity.limit) if entity.limit else rows


@cache
def tokens_of(catalogue: Catalogue, dataset: str) -> float:
    """How many tokens a record of a data set has, on average; of a mixture by the parts' numbers of records."""
    entity = catalogue.datasets.get(dataset)
    if entity is None:
        return TOKENS
    if mixture := entity.source.mixture:
        rows = {part: rows_of(catalogue, part, "train") for part in mixture}
        return sum(tokens_of(catalogue, part) * count for part, count in rows.items()) / sum(rows.values())
    return entity.expected.tokens or (PASSAGE if entity.kind == "passage" else TOKENS)


def training_work(catalogue: Catalogue, step: Resolved) -> float:
    """How much a training computes, in tokens × FLOPs per token and parameter.

    6 per token, forward and backward (Kaplan et al. 2020, arXiv 2001.08361, Sec. 2.1); with adapters 4, since frozen
    weights have no gradients; recomputing activations adds a forward pass, 2. A step that forgets one data set and
    keeps another learns from both. The step's `cost` multiplies it.
    """
    settings = step.settings
    training = getattr(settings, "training", None)
    if training is None or not hasattr(training, "batch_size"):
        return step.cost * PLAIN_TOKENS * 8
    data = getattr(settings, "data", "")
    cut = training.max_tokens or float("inf")
    if training.max_steps is not None:
        examples = float(training.max_steps * training.batch_size)
    else:
        examples = training.epochs * rows_of(catalogue, data, "train")
    each = (4 if training.lora else 6) + (2 if training.gradient_checkpointing else 0)
    sets = 2 if getattr(settings, "forget", None) else 1
    passes = _inner(settings.inner, training.batch_size) if hasattr(settings, "inner") else sets
    return step.cost * examples * min(tokens_of(catalogue, data), cut) * each * passes


def _inner(inner: Any, batch_size: int) -> float:
    """TAR's passes over an outer batch: the one that is kept and its reference, the simulated attack, its gradients."""
    attack = inner.steps * inner.batch_size / batch_size
    return 4 / 3 + inner.trajectories * (attack + inner.steps / inner.every)


def answering_work(resolved: Resolved) -> float:
    """How much a job of the stage `generate` answers, as a multiple of SEP's; a search by its trials and prompts."""
    search = getattr(resolved.settings, "search", None) if "search" in type(resolved.settings).model_fields else None
    if not hasattr(search, "trials"):
        return resolved.cost
    return resolved.cost * search.trials * TRIAL_PROMPTS * search.max_new_tokens / (ANSWERS * NEW_TOKENS)
