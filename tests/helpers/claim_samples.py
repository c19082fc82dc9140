"""Made-up scores on which a claim comes out in a verdict that is asked for: values by a linear programme, then files.

A quantity is a metric of a recipe on a benchmark. A condition bounds one quantity, or the gain of one over another, in
the metric's own direction; all these are linear, so that values which meet some conditions and miss others are found
by a linear programme. Attacks on a recipe have its value: the mean and the worst of equals are the same.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import linprog
from score_samples import write_scores

from bulwark.config.catalogue import Catalogue
from bulwark.evaluation.metrics import metric
from bulwark.reporting.settings import Against, Bound, Claim, Condition

Quantity = tuple[str, str, str]  # recipe, benchmark, metric
Outcome = Literal["holds", "fails", "opposite", "open"]
RECORDS, SEEDS = 12, (0, 1)
TIGHT, WIDE = 1e-5, 0.5  # spreads of records, of the scale of their metric
_SLACK = 0.02  # of the scale: how far from its bound a condition is met or missed, at most
_SCALES = {"kl": (0.0, 2.0), "score": (1.0, 10.0), "effect": (-1.0, 1.0), "effect_elsewhere": (-1.0, 1.0)}
_AREAS = ("detectors",)  # benchmarks whose metrics are no means over records


def directions(claim: Claim, catalogue: Catalogue) -> dict[tuple[str, str], bool | None]:
    """{(benchmark, metric): whether higher is better}, by the code of the benchmarks."""
    found = {}
    for benchmark, name in claim.metrics():
        module = importlib.import_module(f"bulwark.benchmarks.{catalogue.benchmarks[benchmark].module}")
        found[benchmark, name] = module.METRICS[name]
    return found


def values(conditions: Sequence[Condition], wanted: Mapping[int, Outcome], higher: Mapping) -> dict[Quantity, float]:
    """A value of every quantity at which the conditions, by number, come out as wanted; none if there are no such.

    An open condition holds by so little that records with a wide spread leave it open.
    """
    quantities = list(dict.fromkeys(one for condition in conditions for one in quantities_of(condition)))
    place = {quantity: index for index, quantity in enumerate(quantities)}
    rows, bounds, nearest = [], [], np.zeros(len(quantities))
    for number, outcome in wanted.items():
        for first, (weights, bound) in enumerate(_bounds(conditions[number], outcome, higher)):
            row = np.zeros(len(quantities))
            for quantity, weight in weights.items():
                row[place[quantity]] = weight
            rows.append(row)
            bounds.append(bound)
            if outcome == "open" and first == 0:
                nearest -= row  # as near to this bound as the others allow
    spans = [_scale(name) for _, _, name in quantities]
    found = linprog(nearest, np.array(rows), np.array(bounds), bounds=spans)
    return dict(zip(quantities, map(float, found.x), strict=True)) if found.success else {}


def written(
    folder: Path,
    claim: Claim,
    catalogue: Catalogue,
    given: Mapping[Quantity, float],
    wide: Iterable[Quantity] = (),
) -> list[dict[str, Any]]:
    """Scores of all that the claim reads, with these values; the cells. wide: which records spread widely."""
    higher = directions(claim, catalogue)
    of_file: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for condition in claim.conditions:
        for recipe, benchmark, name in quantities_of(condition):
            spread = (WIDE if (recipe, benchmark, name) in set(wide) else TIGHT) * float(np.ptp(_scale(name)))
            for one in (recipe, *_attacks(condition, recipe)):
                of_file.setdefault((one, benchmark), {})[name] = given[recipe, benchmark, name], spread
    for condition in claim.conditions:
        if (case := condition.terms.worst_case) is not None:  # no attack costs any utility
            for recipe, _, _ in quantities_of(condition):
                for one in (recipe, *_attacks(condition, recipe)):
                    of_file.setdefault((one, case.utility.benchmark), {}).setdefault(case.utility.metric, (0.9, 0.0))
    for (_, benchmark), metrics in of_file.items():  # a file has all metrics of its benchmark
        for of_metric, name in higher:
            if of_metric == benchmark:
                metrics.setdefault(name, (float(np.mean(_scale(name))), TIGHT))
    return [
        _cell(folder, recipe, seed, benchmark, metrics, higher, catalogue.benchmarks[benchmark].module in _AREAS)
        for (recipe, benchmark), metrics in of_file.items()
        for seed in (SEEDS[:1] if recipe == "base" else SEEDS)
    ]


def quantities_of(condition: Condition) -> list[Quantity]:
    """What a condition reads: of both recipes, or of the one that it bounds."""
    terms = condition.terms
    recipes = (terms.recipe, terms.than) if isinstance(terms, Against) else (terms.recipe,)
    return [(recipe, terms.benchmark, terms.metric) for recipe in recipes]


def _cell(
    folder: Path, recipe: str, seed: int, benchmark: str, metrics: Mapping[str, tuple[float, float]], higher, area: bool
) -> dict[str, Any]:
    columns = {}
    for name, (value, spread) in metrics.items():
        noise = np.random.default_rng(zlib.crc32(f"{recipe} {seed} {benchmark} {name}".encode())).normal(size=RECORDS)
        columns[name] = value + spread * (noise - noise.mean()) / noise.std()
    if area:
        stated = {
            name: {
                "value": value, "stderr": spread, "interval": [value - 2 * spread, value + 2 * spread], "n": RECORDS,
                "higher_is_better": higher[benchmark, name],
            }
            for name, (value, spread) in metrics.items()
        }  # fmt: skip
        return write_scores(folder, "m", recipe, seed, benchmark, stated)
    rows = [
        {"id": f"r{number:02d}", **{name: float(column[number]) for name, column in columns.items()}}
        for number in range(RECORDS)
    ]
    stated = {name: metric(rows, name, higher.get((benchmark, name), True)) for name in metrics}
    return write_scores(folder, "m", recipe, seed, benchmark, stated, rows)


def _attacks(condition: Condition, recipe: str) -> list[str]:
    """The attacks on a recipe, two trials for each pattern."""
    case = condition.terms.case
    names = case.over(recipe) if case else ()
    return [one for name in names for one in ([f"{name[:-1]}0", f"{name[:-1]}1"] if name.endswith(".*") else [name])]


def _scale(name: str) -> tuple[float, float]:
    return _SCALES.get(name, (0.0, 1.0))


def _bounds(condition: Condition, outcome: Outcome, higher: Mapping) -> list[tuple[dict[Quantity, float], float]]:
    """What an outcome asks for, as (weights of quantities, upper bound of their sum)."""
    terms, kind = condition.terms, condition.kind
    low, high = _scale(terms.metric)
    if isinstance(terms, Bound):
        [one] = quantities_of(condition)
        slack = min(_SLACK * (high - low), (terms.value - low) / 2, (high - terms.value) / 2)
        above = [({one: -1.0}, -terms.value - slack)]
        below = [({one: 1.0}, terms.value - slack)]
        stated, other = (above, below) if kind == "at_least" else (below, above)
        return {"holds": stated, "open": stated, "fails": other}[outcome]
    first, second = quantities_of(condition)
    sign = 1.0 if higher[terms.benchmark, terms.metric] else -1.0
    gain, loss = {first: sign, second: -sign}, {first: -sign, second: sign}
    margin = terms.margin
    slack = min(_SLACK * (high - low), margin / 3) if margin else _SLACK * (high - low)
    if kind == "better":
        return {
            "holds": [(loss, -margin - slack)],
            "open": [(loss, -margin - slack)],
            "fails": [(loss, -slack), (gain, margin - slack)],
            "opposite": [(gain, -slack)],
        }[outcome]
    if kind == "not_worse":
        return {
            "holds": [(loss, margin - slack)],
            "open": [(loss, margin - slack)],
            "opposite": [(gain, -margin - slack)],
        }[outcome]
    return {
        "holds": [(gain, margin - slack), (loss, margin - slack)],
        "open": [(gain, margin - slack), (loss, margin - slack)],
        "opposite": [(loss, -margin - slack)],
    }[outcome]
