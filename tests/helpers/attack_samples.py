"""Made-up folders of attacks on refusals: the files that an analysis reads, beside a manifest."""

import json
import random
from pathlib import Path

from bulwark import analyses
from bulwark.abliteration.search import pareto
from bulwark.evaluation.statistics import wilson
from bulwark.models.manifests import write_manifest

PROMPTS = 100


def trial(number: int, kl: float, refusals: int, **told) -> dict:
    """A trial on 100 prompts, neither on the front nor taken."""
    n = told.pop("n", PROMPTS)
    return {
        "number": number, "parameters": {"direction_scope": "global"}, "kl": kl, "refusals": refusals,
        "refusal_rate": refusals / n, "n": n, "overrefusals": None, "n_harmless": 50, "disclaimers": None,
        "compliance": None, "gated": False, "dominated": False, "verdicts": [], "seconds": 2.0, "tokens": 9,
        "profile": {"attention": [0.0, 1.0], "mlp": [0.5, 0.0]}, "objectives": [kl, refusals / n],
        "interval": list(wilson(refusals / n, n)), "pareto": False, "chosen": False, **told,
    }  # fmt: skip


TRIALS = (
    trial(0, 0.001, 100, pareto=True),
    trial(1, 0.2, 60),
    trial(2, 0.04, 40, pareto=True),
    trial(3, 3.0, 100, gated=True),
    trial(4, 0.3, 15, n=20, dominated=True),
    trial(5, 0.08, 5, pareto=True, chosen=True, overrefusals=3),
    trial(6, 0.4, 1, pareto=True),
)


def _base() -> dict:
    return {"refusals": 90, "n": PROMPTS, "refusal_rate": 0.9, "interval": list(wilson(0.9, PROMPTS))}


def _lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _finished(folder: Path, kind: str, settings: dict, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    manifest = folder / "checkpoint.json"
    write_manifest(manifest, {"kind": kind, "settings": settings, "provenance": {"git": "0"}})
    return manifest


def search_folder(folder: Path, trials=TRIALS, setup: float = 10.0, bound: float | None = 0.1) -> Path:
    """What `heretic` or `iconoclast` leaves; 50 % and 90 % less at KL ≤ 0.1 after trials 3 and 6."""
    known, volumes = [], []
    for one in trials:
        if not one["gated"] and not one["dominated"]:
            known.append((one["kl"], one["refusal_rate"]))
        volumes.append(pareto.front_volume(known))
    best = next(one for one in trials if one["chosen"])
    whole = [one for one in trials if not one["gated"] and not one["dominated"]]
    budgets = {}
    for budget in (0.05, 0.1, 0.5):
        fitting = [one for one in whole if one["kl"] <= budget]
        budgets[str(budget)] = min(fitting, key=lambda one: one["refusals"]) if fitting else None
    summary = {
        "layers": 2, "base": _base(), "chosen": best, "budgets": budgets, "hypervolume": volumes,
        "exported": {"kl": best["kl"] + 0.001, "refusals": 6, "n": PROMPTS, "equal_verdicts": 0.99},
        "cost": {
            "setup_seconds": setup, "search_seconds": 2.0 * len(trials), "seconds_per_trial": 2.0,
            "trials_to_50": 3, "seconds_to_50": setup + 6, "trials_to_90": 6, "seconds_to_90": setup + 12,
        },
        "trials": len(trials), "gated": 1, "given_up": 1,
    }  # fmt: skip
    geometry = [
        {"layer": layer, "cos_g_b": 0.1 * layer, "norm_g": 2.0, "norm_r": 1.0 * layer, "silhouette": height}
        for layer, height in ((1, 0.2), (2, 0.6), (3, 0.4))
    ]
    draw = random.Random(0)
    points = [
        {"layer": layer, "label": label, "x": side * layer + draw.gauss(0, 0.2), "y": draw.gauss(0, 3)}
        for layer in (1, 2, 3)
        for label, side in (("harmful", 1), ("harmless", -1))
        for _ in range(12)
    ]
    files = {"trials.jsonl": _lines(trials), "summary.json": json.dumps(summary)}
    files |= {"geometry.json": json.dumps(geometry), "projections.jsonl": _lines(points)}
    return _finished(folder, "heretic", {"selection": {"kl_at_most": bound}}, files)


def direction_folder(folder: Path, refusals: int = 30, kl: float = 0.02) -> Path:
    """What `refusal_direction` leaves: three candidates, of which the second is taken, after 25 seconds."""
    candidates = [
        {"position": -1, "layer": layer, "refusal_score": score, "induced_refusal": 1.0, "kl": of, "norm": 3.0,
         "dropped": None, "chosen": layer == 1}
        for layer, score, of in ((0, 4.0, 0.0), (1, -2.0, kl), (2, -1.0, 0.2))
    ]  # fmt: skip
    edited = {"refusals": refusals, "n": PROMPTS, "refusal_rate": refusals / PROMPTS, "overrefusals": None}
    edited |= {"n_harmless": 50, "interval": list(wilson(refusals / PROMPTS, PROMPTS))}
    summary = {
        "base": _base(), "chosen": {**candidates[1], "edited": edited}, "cost": {"setup_seconds": 25.0},
        "exported": {"kl": kl, "refusals": refusals, "n": PROMPTS, "equal_verdicts": 1.0},
    }  # fmt: skip
    files = {"candidates.jsonl": _lines(candidates), "summary.json": json.dumps(summary)}
    return _finished(folder, "refusal_direction", {"kl_at_most": 0.1}, files)


def analysed(folder: Path, checkpoint: Path, recipe: str, analysis: str = "abliteration", seed: int = 0) -> dict:
    """The cell of an analysis, written by the real code."""
    scores = folder / "analyses" / "m" / recipe / f"seed{seed}" / f"{analysis}.json"
    identity = {"benchmark": analysis, "model": "m", "recipe": recipe, "seed": seed}
    analyses.analyse_file(checkpoint=checkpoint, module=analysis, settings={}, identity=identity, scores=scores)
    return {**identity, "scores": str(scores)}
