"""What a run tells before its first job: which finished results it would make again, and why; and where it stops.

Only what measures or holds a model counts here: tables, figures, claims and reports are drawn anew whenever something
is added to them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bulwark.config.standing.asked import gpus_of, rule_of
from bulwark.config.standing.standing import made_from
from bulwark.errors import BulwarkError

OPENING = "Finished results would be made again:"
# {rule: what it makes}, in the order in which they are told.
KINDS = {
    "download_model": "base model",
    "adopt_model": "base model",
    "pretrain_model": "base model",
    "apply_step": "checkpoint",
    "take_shared": "checkpoint",
    "take_snapshot": "checkpoint",
    "choose_trial": "checkpoint",
    "generate_answers": "set of answers",
    "score_answers": "file of scores",
    "extract_vectors": "trait's vectors",
    "adopt_vectors": "trait's vectors",
    "generate_contrasts": "set of contrasted answers",
    "steer_layers": "set of steered answers",
    "project_dataset": "projection",
    "download_dataset": "download",
    "prepare_dataset": "file of records",
    "analyse_checkpoint": "analysis",
}
_PLURALS = {
    "set of answers": "sets of answers",
    "file of scores": "files of scores",
    "trait's vectors": "traits' vectors",
    "set of contrasted answers": "sets of contrasted answers",
    "set of steered answers": "sets of steered answers",
    "file of records": "files of records",
    "analysis": "analyses",
}
_MOST = 12  # reasons that are told


@dataclass(frozen=True)
class Remade:
    """A finished result that a plan makes again.

    paths: its files. reason: why, in words; "" where it is only made from another one that is. gpus: that it was made
    with, or that the plan gives it. gpu_hours: that making it again is expected to take. planned: whether the plan
    makes it; if not, it only becomes stale, because it was made from one that the plan makes. defined_otherwise:
    whether the reason is that other settings or inputs are asked for, which could have a name of their own.
    """

    paths: tuple[str, ...]
    rule: str
    reason: str = ""
    gpus: int = 0
    gpu_hours: float = 0.0
    planned: bool = True
    defined_otherwise: bool = False


def left_stale(remade: Sequence[Remade]) -> list[Remade]:
    """The results, also of other configurations, that were made from what is made again, and are not planned."""
    planned = {path for result in remade for path in result.paths}
    others = made_from(path for result in remade if result.rule in KINDS for path in result.paths)
    by_job = {asked: path for path, asked in others.items() if path not in planned}
    return [Remade((path,), rule_of(asked), gpus=gpus_of(asked), planned=False) for asked, path in by_job.items()]


def told(remade: Sequence[Remade]) -> str:
    """What is said of them, in lines of which all but the first are indented; "" for nothing to say."""
    counted = [result for result in remade if result.rule in KINDS and result.planned]
    if not counted:
        return ""
    lines = [f"{OPENING} {_counts(counted)}."]
    reasons: dict[str, list[str]] = defaultdict(list)
    for result in counted:
        if result.reason:
            reasons[result.reason].append(result.paths[0])
    shown = sorted(reasons.items(), key=lambda item: -len(item[1]))
    for reason, paths in shown[:_MOST]:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"{paths[0]}{others}: {reason.removeprefix(f'{paths[0]} ')}")
    if len(shown) > _MOST:
        lines.append(f"… and {len(shown) - _MOST} more reasons: bulwark status lists all")
    if derived := sum(not result.reason for result in counted):
        lines.append(f"{derived} more: made from these")
    if left := [result for result in remade if result.rule in KINDS and not result.planned]:
        lines.append(f"Not made again, but stale then, because made from these: {_counts(left)}.")
    if any(result.defined_otherwise for result in counted):
        lines.append(
            "To keep them, give a model, data set, step or benchmark that is defined otherwise a name of its own."
        )
    return "\n  ".join(lines)


def refuse(remade: Sequence[Remade], replace: bool) -> None:
    """Raise BulwarkError if a finished result that needed GPUs would be replaced; replace: whether it may be."""
    costly = [result for result in remade if result.gpus and result.rule in KINDS]
    if costly and not replace:
        raise BulwarkError(
            f"{told(remade)}\n  {len(costly)} of them needed GPUs, so nothing was started. To make them again: the "
            "same command with --config replace=true"
        )


def _counts(counted: Sequence[Remade]) -> str:
    """How many of which kind, and the hours: "2 checkpoints, 1 set of answers (12 GPU hours)"."""
    numbers = Counter(KINDS[result.rule] for result in counted)
    kinds = sorted(numbers, key=list(dict.fromkeys(KINDS.values())).index)
    words = [f"{numbers[kind]} {kind if numbers[kind] == 1 else _PLURALS.get(kind, kind + 's')}" for kind in kinds]
    hours = sum(result.gpu_hours for result in counted)
    return ", ".join(words) + (f" ({hours:,.1f} GPU hours)" if hours else "")
