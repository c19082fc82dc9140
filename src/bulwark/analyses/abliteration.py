"""What an attack on refusals reached, and what it cost, by the prompts that its search measured trials on.

Read from what a step `heretic`, `iconoclast`, `gradient_edit` or `refusal_direction` leaves behind. The prompts are
those that the attack was optimised on, so these numbers flatter it; the benchmark `refusal` measures on others.

    trials, front_size, hypervolume
        how many trials, how many of them no other dominates, and the hypervolume of (log KL, refusal rate) at the end,
        from 0 to 1: log KL counts from 1e-4 nats to 1 nat (`bulwark.abliteration.search.pareto.log_share`)
    base_refusal_rate, refusal_rate, overrefusal_rate, kl
        of the model before the attack, and of the trial that was taken; overrefusals where the attack reads them
    exported_kl, equal_verdicts
        of the weights that were saved, loaded again: KL, and on what share of harmful prompts they agree with the trial
    refusal_rate_at_0_05, …_0_1, …_0_5
        the least refusal rate of a trial at a KL of at most so many nats, null if none keeps it
    seconds, seconds_per_trial
        of everything until the choice, and of one trial
    seconds_to_50, …_90, trials_to_50, …_90
        until refusals had fallen by a half and by nine tenths within the KL that the choice allows, null if never

Ablation of one direction has no trials: what speaks of them is null, and the rows are its candidates, of which only the
one that was taken has a refusal rate. None of this is better higher or lower, but KL, which is damage.

The rows are the trials: `divergence` is KL, `rate` the refusal rate, `volume` the hypervolume after it, `passed` the
seconds until then. They are not called what the metrics are, whose values they are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bulwark.abliteration.settings import AttackSettings, GradientEditSettings, RefusalDirectionSettings
from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.evaluation.metrics import Row
from bulwark.settings import Closed

Values = dict[str, tuple[float | None, int]]  # {metric: (value, of how many observations)}

_BUDGETS = {"0_05": 0.05, "0_1": 0.1, "0_5": 0.5}
_REDUCTIONS = (50, 90)
_KEPT = ("number", "refusals", "n", "interval", "overrefusals", "n_harmless", "profile")
_KEPT += ("pareto", "chosen", "gated", "dominated")
_REPORTED = ("base", "chosen", "exported", "budgets", "cost", "layers", "gated", "given_up")

METRICS: dict[str, bool | None] = {
    "trials": None,
    "front_size": None,
    "hypervolume": None,
    "base_refusal_rate": None,
    "refusal_rate": None,
    "overrefusal_rate": False,
    "kl": False,
    "exported_kl": False,
    "equal_verdicts": None,
    **{f"refusal_rate_at_{name}": None for name in _BUDGETS},
    "seconds": None,
    "seconds_per_trial": None,
    **{f"{unit}_to_{reduction}": None for unit in ("seconds", "trials") for reduction in _REDUCTIONS},
}


class Settings(Closed):
    """Nothing can be set: what is measured, and on which prompts, stands in the step's own settings."""


def applies(settings: Closed) -> bool:
    return isinstance(settings, AttackSettings | GradientEditSettings | RefusalDirectionSettings)


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the files of an attack are missing."""
    summary = read(folder, "summary.json")
    chosen = manifest["settings"]
    bound = chosen["selection"]["kl_at_most"] if "selection" in chosen else chosen["kl_at_most"]
    reported = {key: summary[key] for key in _REPORTED if key in summary} | {"kl_at_most": bound}
    if (folder / "candidates.jsonl").is_file():
        values, rows = _directed(summary, read(folder, "candidates.jsonl"), bound)
    else:
        values, rows = _searched(summary, read(folder, "trials.jsonl"))
    return Analysis({name: values.get(name, (None, 0)) for name in METRICS}, rows, reported)


def read(folder: Path, name: str) -> Any:
    """One of the files that an attack writes: a document, or lines. Raises RecordError if it is not there."""
    path = folder / name
    if not path.is_file():
        raise RecordError(
            f"{path} is missing, which an attack writes beside its weights. Delete the folder and make it again."
        )
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def _searched(summary: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> tuple[Values, list[Row]]:
    """Of HERETIC's and ICONOCLAST's search."""
    best, cost, count = summary["chosen"], summary["cost"], len(trials)
    passed, rows = cost["setup_seconds"], []
    for trial, hypervolume in zip(trials, summary["hypervolume"], strict=True):
        passed += trial["seconds"]
        measured = {"divergence": trial["kl"], "rate": trial["refusal_rate"]}
        reached = {"volume": hypervolume, "passed": round(passed, 3)}
        rows.append({key: trial[key] for key in _KEPT} | measured | reached)
    values = {
        "trials": (count, count),
        "front_size": (sum(trial["pareto"] for trial in trials), count),
        "hypervolume": (rows[-1]["volume"], count),
        **_reached(summary["base"], best, summary["exported"]),
        "seconds": (rows[-1]["passed"], count),
        "seconds_per_trial": (cost["seconds_per_trial"], count),
    }
    for name, budget in _BUDGETS.items():
        least = summary["budgets"][str(budget)]
        values[f"refusal_rate_at_{name}"] = (least and least["refusal_rate"], best["n"])
    for reduction in _REDUCTIONS:
        for unit in ("seconds", "trials"):
            values[f"{unit}_to_{reduction}"] = (cost[f"{unit}_to_{reduction}"], count)
    return values, rows


def _directed(
    summary: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], bound: float
) -> tuple[Values, list[Row]]:
    """Of the ablation of one direction: one edited model, which is both the first trial and the last."""
    from bulwark.abliteration.search import pareto

    edited, seconds = summary["chosen"]["edited"], summary["cost"]["setup_seconds"]
    best = edited | {"kl": summary["chosen"]["kl"]}
    volume = pareto.front_volume([(best["kl"], best["refusal_rate"])])
    measured = {key: best[key] for key in ("refusals", "n", "interval")} | {"rate": best["refusal_rate"]}
    measured |= {"volume": volume, "passed": seconds}
    rows = []
    for number, candidate in enumerate(candidates):
        row = {"number": number, "divergence": candidate["kl"], "pareto": False, "gated": False, "dominated": False}
        row |= {key: value for key, value in candidate.items() if key != "kl"}
        rows.append(row | (measured if candidate["chosen"] else dict.fromkeys(measured)))
    count, base = len(candidates), summary["base"]
    values = {"hypervolume": (measured["volume"], count), "seconds": (seconds, count)}
    values |= _reached(base, best, summary["exported"])
    for name, budget in _BUDGETS.items():
        values[f"refusal_rate_at_{name}"] = (best["refusal_rate"] if best["kl"] <= budget else None, best["n"])
    for reduction in _REDUCTIONS:
        fallen = best["refusal_rate"] <= (1 - reduction / 100) * base["refusal_rate"] and best["kl"] <= bound
        values[f"seconds_to_{reduction}"] = (seconds if fallen else None, count)
    return values, rows


def _reached(base: Mapping[str, Any], best: Mapping[str, Any], exported: Mapping[str, Any]) -> Values:
    """What the model does before the attack, under the trial that was taken, and as it was saved."""
    wrongly = best["overrefusals"]
    return {
        "base_refusal_rate": (base["refusal_rate"], base["n"]),
        "refusal_rate": (best["refusal_rate"], best["n"]),
        "overrefusal_rate": (None if wrongly is None else wrongly / best["n_harmless"], best["n_harmless"]),
        "kl": (best["kl"], best["n_harmless"]),
        "exported_kl": (exported["kl"], best["n_harmless"]),
        "equal_verdicts": (exported["equal_verdicts"], exported["n"]),
    }
