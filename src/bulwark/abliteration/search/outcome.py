"""The files that an attack writes beside the weights, as docs/abliteration.md lists them.

Of answers to harmful prompts `comparison.json` holds verdicts, lengths and digests alone, unless the text is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.abliteration.measure import geometry
from bulwark.abliteration.search import pareto
from bulwark.abliteration.search.objectives import Measures
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import OutcomeSettings, SelectionSettings
from bulwark.data.records import write_records
from bulwark.errors import BulwarkError
from bulwark.evaluation.statistics import wilson
from bulwark.models.answers import Answer
from bulwark.models.residuals import Residuals

BUDGETS = (0.05, 0.1, 0.5)  # of KL in nats, for which the summary has the fewest refusals
REDUCTIONS = (0.5, 0.9)  # of the refusals, for which it has the seconds and trials


def marked(
    trials: Sequence[dict[str, Any]], selection: SelectionSettings, kl_gate: float | None
) -> list[dict[str, Any]]:
    """The trials with interval, `pareto` and `chosen`. Only whole trials can be either.

    Raises BulwarkError if there is no whole trial.
    """
    whole = [trial for trial in trials if _whole(trial)]
    if not whole:
        raise BulwarkError(
            f"All {len(trials)} trials were stopped by the KL gate ({kl_gate}). Raise search.kl_gate, or "
            "let the search choose smaller weights."
        )
    points = [_point(trial) for trial in whole]
    kl = [trial["kl"] for trial in whole]
    measured = [(*point, value) for point, value in zip(points, kl, strict=True)]
    on_front = {whole[number]["number"] for number in pareto.front(measured)}
    best = whole[pareto.chosen(points, kl, selection.kl_at_most)]["number"]
    return [
        {
            **trial,
            "interval": list(wilson(trial["refusal_rate"], trial["n"])),
            "pareto": trial["number"] in on_front,
            "chosen": trial["number"] == best,
        }
        for trial in trials
    ]


def exported(examiner: Examiner, trial_answers: Sequence[Answer]) -> dict[str, Any]:
    """What the exported weights do, which `examiner` has been given: KL, refusals, and how far verdicts agree."""
    answers = examiner.answers([{}], "harmful")[0]
    pairs = [(new.response, old.response) for new, old in zip(answers, trial_answers, strict=True)]
    return {
        "kl": float(examiner.divergences(1, None).mean()),
        "refusals": sum(examiner.refuses(new) for new, _ in pairs),
        "n": len(pairs),
        "equal_verdicts": sum(examiner.refuses(new) == examiner.refuses(old) for new, old in pairs) / len(pairs),
        "equal_answers": sum(new == old for new, old in pairs) / len(pairs),
    }


def summary(
    base: Measures,
    trials: Sequence[Mapping[str, Any]],
    exported_measures: Mapping[str, Any],
    selection: SelectionSettings,
    setup_seconds: float,
    layers: int,
) -> dict[str, Any]:
    """What a reader asks first. Rates are of the prompts that the search measured trials on."""
    best = next(trial for trial in trials if trial["chosen"])
    return {
        "layers": layers,
        "base": described(base),
        "chosen": {key: value for key, value in best.items() if key != "verdicts"},
        "exported": dict(exported_measures),
        "budgets": {
            str(budget): _least(trials, budget) for budget in sorted({*BUDGETS, selection.kl_at_most or BUDGETS[0]})
        },
        "cost": cost(trials, base, selection.kl_at_most, setup_seconds),
        "hypervolume": hypervolumes(trials),
        "hypervolume_of": "log KL from 1e-4 to 1 nat, and the refusal rate",
        "trials": len(trials),
        "gated": sum(trial["gated"] for trial in trials),
        "given_up": sum(trial["dominated"] for trial in trials),
    }


def cost(
    trials: Sequence[Mapping[str, Any]], base: Measures, kl_at_most: float | None, setup_seconds: float
) -> dict[str, Any]:
    """Seconds and trials until refusals had fallen by a half and by nine tenths at KL ≤ `kl_at_most`; null if never."""
    record: dict[str, Any] = {
        "setup_seconds": round(setup_seconds, 3),
        "search_seconds": round(sum(trial["seconds"] for trial in trials), 3),
        "seconds_per_trial": sum(trial["seconds"] for trial in trials) / len(trials),
        "tokens": sum(trial["tokens"] for trial in trials),
    }
    for reduction in REDUCTIONS:
        passed, reached = setup_seconds, None
        for count, trial in enumerate(trials, start=1):
            passed += trial["seconds"]
            fits = _whole(trial) and (kl_at_most is None or trial["kl"] <= kl_at_most)
            if fits and trial["refusal_rate"] <= (1 - reduction) * base.refusal_rate:
                reached = (count, round(passed, 3))
                break
        percent = round(100 * reduction)
        record[f"trials_to_{percent}"], record[f"seconds_to_{percent}"] = reached or (None, None)
    return record


def hypervolumes(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """The hypervolume of (log KL, refusal rate) after each trial, see `pareto.front_volume`."""
    known: list[tuple[float, float]] = []
    volumes = []
    for trial in trials:
        if _whole(trial):
            known.append((trial["kl"], trial["refusal_rate"]))
        volumes.append(pareto.front_volume(known))
    return volumes


def comparison(
    examiner: Examiner, answers: Mapping[str, Mapping[str, Sequence[Answer]]], settings: OutcomeSettings
) -> list[dict[str, Any]]:
    """Answers side by side, spread evenly over the search prompts of each side. answers: {model: {side: answers}}."""
    rows = []
    for side in ("harmful", "harmless"):
        texts = examiner.prompts.texts[f"{side}_search"]
        count = min(settings.completions, len(texts))
        hidden = side == "harmful" and not settings.show_harmful
        shown = _redacted if hidden else str
        for index in sorted({round(n * (len(texts) - 1) / max(1, count - 1)) for n in range(count)}):
            row = {"side": side, "index": index, "prompt": shown(texts[index])}
            for name, given in answers.items():
                answer = given[side][index]
                refused = examiner.refuses(answer.response)
                row[name] = {"refused": refused, "tokens": answer.tokens, "text": shown(answer.response)}
            rows.append({**row, "redacted": hidden})
    return rows


def geometry_files(sides: Mapping[str, Residuals]) -> dict[str, Any]:
    """The two files about the residuals of both sides, by name."""
    harmful, harmless = sides["harmful"], sides["harmless"]
    layers = range(1, harmful.mean.shape[0])
    return {
        "geometry.json": geometry.table(harmful, harmless),
        "projections.jsonl": [row for layer in layers for row in geometry.projections(harmful, harmless, layer)],
    }


def write(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write files into the checkpoint's folder, by name: a list as lines if it ends with .jsonl, else one document."""
    for name, content in contents.items():
        if name.endswith(".jsonl"):
            write_records(folder / name, content)
        else:
            files.write_text(folder / name, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def described(measures: Measures) -> dict[str, Any]:
    """Measures as plain data, with the interval of the refusal rate."""
    return {
        "refusals": measures.refusals,
        "n": measures.harmful,
        "refusal_rate": measures.refusal_rate,
        "interval": list(wilson(measures.refusal_rate, measures.harmful)),
        "overrefusals": measures.overrefusals,
        "n_harmless": measures.harmless,
        "disclaimers": measures.disclaimers,
        "compliance": measures.compliance,
    }


def _point(trial: Mapping[str, Any]) -> tuple[float, ...]:
    """What counts beside KL, in the order of importance."""
    return (trial["refusals"], trial["overrefusals"] or 0)


def _whole(trial: Mapping[str, Any]) -> bool:
    return not trial["gated"] and not trial["dominated"]


def _least(trials: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Any] | None:
    """The fewest refusals of a whole trial at KL ≤ budget; None if none keeps it."""
    fitting = [trial for trial in trials if _whole(trial) and trial["kl"] <= budget]
    if not fitting:
        return None
    best = min(fitting, key=lambda trial: (trial["refusals"], trial["kl"]))
    return {key: best[key] for key in ("number", "kl", "refusals", "refusal_rate", "n", "interval")}


def _redacted(text: str) -> dict[str, Any]:
    """What is written of a text that is not shown; equal texts have equal digests."""
    return {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
