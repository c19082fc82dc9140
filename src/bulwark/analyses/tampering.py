"""How tamper-resistant training went, from what it noted of every simulated attack (tampering.jsonl).

"first" and "last" are means over the first and the last `share` of the trajectories (at least one); losses and
entropies are in nats per token. TAR's paper draws such curves to compare its losses and to show that preferences hold
(Tamirisa et al. 2024, arXiv 2408.00761, App. C.3 and D.5).

    resistance_first, resistance_last
        the resistance loss L_TR, its mean over the checkpoints of an attack
    entropy_first, entropy_last, entropy_share_last
        where L_TR is the entropy: the entropy on held-out data that is left at an attack's last checkpoint, and what
        share it is of ln V, that of guessing
    attack_first, attack_last, attack_rise_first, attack_rise_last
        the adversary's own loss at its last inner step, and how much higher that is than at its first: above 0 where
        the attack fails. Of attacks that train on the attacked data from the start, if there are any
    held_out_first, held_out_last
        the cross-entropy on held-out data at the last checkpoint
    win_rate_first, win_rate_last
        where L_TR is DPO's: the share of held-out pairs whose chosen response has gained more

Rows: of each outer step ("curve": "outer") the same numbers, and of each inner step ("curve": "inner") the adversary's
loss, `attack`, over the first and the last trajectories ("when"). What is not defined is null. None of it is better
higher or lower: the loss that a defense optimises says little about attacks that it does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.evaluation.metrics import Row
from bulwark.settings import Closed
from bulwark.unlearning.tampering.settings import TamperingSettings

RECORD = "tampering.jsonl"
_NUMBERS = ("resistance", "entropy", "attack", "attack_rise", "held_out", "win_rate")

METRICS: dict[str, bool | None] = {
    **{f"{name}_{when}": None for name in _NUMBERS for when in ("first", "last")},
    "entropy_share_last": None,
}


class Settings(Closed):
    """share: of the trajectories, those that count as the first and as the last."""

    share: float = Field(0.1, gt=0, le=0.5)


def applies(settings: Closed) -> bool:
    return isinstance(settings, TamperingSettings)


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the step simulated no attacks."""
    path = folder / RECORD
    if not path.is_file():
        raise RecordError(
            f"{folder}: has no {RECORD}, so the step simulated no attacks. Take the recipe out of what shows the "
            "analysis."
        )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    entropic = manifest["settings"]["resistance"]["loss"] == "entropy"
    some = any(line["switch"] == 0 for line in lines)
    direct = [not some or line["switch"] == 0 for line in lines]
    trajectories = [_numbers(line, entropic, counts) for line, counts in zip(lines, direct, strict=True)]
    width = max(1, round(settings.share * len(lines)))
    windows = {"first": slice(0, width), "last": slice(len(lines) - width, None)}
    values: dict[str, tuple[float | None, int]] = {}
    for when, window in windows.items():
        for name in _NUMBERS:
            known = [of[name] for of in trajectories[window] if of[name] is not None]
            values[f"{name}_{when}"] = _mean(known), len(known)
    last, n = values["entropy_last"]
    values["entropy_share_last"] = (None if last is None else last / math.log(_vocabulary(folder))), n
    rows: list[Row] = [
        {"curve": "outer", "when": None, "step": step, **_means([of for of in trajectories if of["step"] == step])}
        for step in dict.fromkeys(line["step"] for line in lines)
    ]
    for when, window in windows.items():
        pairs = zip(lines[window], direct[window], strict=True)
        chosen = [line["attack"] for line, counts in pairs if counts]
        rows += [
            {"curve": "inner", "when": when, "step": k, **dict.fromkeys(_NUMBERS), "attack": _mean(losses)}
            for k, losses in enumerate(zip(*chosen, strict=True))
        ]
    reported = {"share": settings.share, "trajectories": len(lines), **manifest.get("tampering", {})}
    return Analysis({name: values[name] for name in METRICS}, rows, reported)


def _numbers(line: Mapping[str, Any], entropic: bool, direct: bool) -> dict[str, float | None]:
    """What is shown of one trajectory."""
    attack = line["attack"]
    return {
        "step": line["step"],
        "resistance": _mean(line["resistance"]),
        "entropy": -line["resistance"][-1] if entropic else None,
        "attack": attack[-1] if direct else None,
        "attack_rise": attack[-1] - attack[0] if direct else None,
        "held_out": line.get("held_out_cross_entropy"),
        "win_rate": line.get("win_rate"),
    }


def _means(trajectories: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: _mean(of[name] for of in trajectories if of[name] is not None) for name in _NUMBERS}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _vocabulary(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config)["vocab_size"]
