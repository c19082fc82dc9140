"""What a cross table shows: of every defense under every attack what is defended, the utility and the compute."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bulwark.evaluation import ranking
from bulwark.evaluation.statistics import Estimate, Sample, at_seeds, estimate
from bulwark.evaluation.worst_case import Attack as Attempt
from bulwark.evaluation.worst_case import worst_case
from bulwark.reporting.columns import those_named
from bulwark.reporting.crossed.settings import NO_ATTACK, WORST, Attack, Cross, Family
from bulwark.reporting.results import Results, ResultsError

UTILITY, SECONDS = "utility", "seconds"  # beside families, what may be missing
NOTHING = "no attack"  # what an attack is called that leaves the defense as it is


@dataclass(frozen=True)
class Field:
    """One family under one attack: the share defended, and the steps that it is of, one per half of the records.

    raw: the metric itself; None for a worst case, whose halves may be of two steps.
    """

    share: Estimate
    chosen: tuple[str, ...]
    raw: float | None


@dataclass(frozen=True)
class Line:
    """A defense under an attack. fields: {family: field}. utility: what is left, kept: as a share of what was before;
    of several recipes, of that which leaves least among those that are the worst of a family.

    within: whether that is within the loss that is allowed. seconds: what the attack took in all, per seed. tried: how
    many recipes the attack made. missing: the families, "utility" and "seconds" where they depend on what is to be
    shown as missing; fields then have no such family, and the others are None.
    """

    model: str
    defense: str
    attack: str
    kind: str
    label: str
    tried: int
    fields: Mapping[str, Field]
    utility: Estimate | None
    kept: float | None
    within: bool
    seconds: float | None
    missing: tuple[str, ...]


def recipes_of(defense: str, attack: Attack, results: Results) -> list[str]:
    """The recipes that an attack makes of a defense, each trial by itself."""
    return those_named(attack.over(defense), results.recipes)


def lines(spec: Cross, results: Results) -> list[Line]:
    """A line per model, defense and attack, and last the worst of all attacks.

    Raises ResultsError for a missing result, and for a metric that has no value per record.
    """
    found = []
    for model in results.models:
        for defense in spec.defenses:
            each = {name: recipes_of(defense, attack, results) for name, attack in spec.attacks.items()}
            every = list(dict.fromkeys(recipe for of in each.values() for recipe in of))
            found.append(_line(spec, results, model, defense, NO_ATTACK, "", NOTHING, []))
            for name, attack in spec.attacks.items():
                found.append(_line(spec, results, model, defense, name, attack.kind, attack.label, each[name]))
            found.append(_line(spec, results, model, defense, WORST, "", "worst of all", every))
    return found


def rankings(spec: Cross, results: Results) -> dict[str, ranking.Ranking]:
    """{model: the order of its defenses}, of those of which nothing is missing."""
    found = {}
    for model in results.models:
        measured = {}
        for defense in spec.defenses:
            recipes = [
                defense,
                *dict.fromkeys(r for a in spec.attacks.values() for r in recipes_of(defense, a, results)),
            ]
            if not set(_missing(spec, results, model, defense, recipes[1:])) - {SECONDS}:
                alive = [defense, *(recipe for recipe in recipes[1:] if not _diverged(spec, results, model, recipe))]
                shares = {
                    name: {recipe: share_of(results, model, recipe, family) for recipe in alive}
                    for name, family in spec.families.items()
                }
                utility = {recipe: _sample(results, model, recipe, spec.utility) for recipe in alive}
                measured[defense] = ranking.Defense(_together(shares), _together({"": utility})[""], defense)
        if measured:
            higher = results.higher_is_better(spec.utility.benchmark, spec.utility.metric) is not False
            found[model] = ranking.ranked(measured, spec.utility.loss, higher_utility=higher)
    return found


def share_of(results: Results, model: str, recipe: str, family: Family) -> Sample:
    """The share of a family that is defended, per seed and record: 1 where the metric is as if all were, 0 for none."""
    sample = _sample(results, model, recipe, family)
    values = (family.unsafe - sample.values) / (family.unsafe - family.safe)
    return replace(sample, values=values + 0.0)


def raw(share: float, family: Family) -> float:
    """The metric at a share that is defended."""
    return family.unsafe - share * (family.unsafe - family.safe)


def step_of(defense: str, recipe: str) -> str:
    """What follows a defense in a recipe, in words where nothing does."""
    if recipe == defense:
        return NOTHING
    return recipe.removeprefix(f"{defense}+")


def _line(
    spec: Cross, results: Results, model: str, defense: str, attack: str, kind: str, label: str, recipes: list[str]
) -> Line:
    missing = _missing(spec, results, model, defense, recipes, alone=attack != WORST and len(recipes) < 2)
    gone = (UTILITY, *spec.families) if UTILITY in missing else missing
    # Which trainings diverged is said by their scores, where these are there.
    alive = [recipe for recipe in recipes if not _diverged(spec, results, model, recipe, missing)]
    if recipes and not alive:
        raise ResultsError(
            f"{model}, {defense}: all {len(recipes)} attacks of {label} diverged, so that there is nothing to show of "
            f"it. Add another step to it, or take it out of attacks.{attack}."
        )
    seconds = None
    if SECONDS not in missing:
        seconds = sum(_seconds(spec, results, model, recipe) for recipe in recipes)
    fields: dict[str, Field] = {}
    if attack != WORST and len(alive) < 2:
        shown = alive[0] if alive else defense
        for name, family in spec.families.items():
            if name not in missing:
                share = estimate(share_of(results, model, shown, family))
                value = None if share.value is None else raw(share.value, family)
                fields[name] = Field(share, (step_of(defense, shown),), value)
        left, kept, within = None, None, True
        if UTILITY not in missing:
            left, kept, within = _left(spec, results, model, defense, shown)
    else:
        ends: set[str] = set()
        for name, family in spec.families.items():
            if name not in gone:
                found = _worst(spec, results, model, defense, alive, family)
                chosen = tuple(step_of(defense, one or defense) for one in found.chosen)
                fields[name] = Field(found.estimate, chosen, None)
                ends |= {one or defense for one in found.chosen}
        left, kept, within = None, None, True
        if not missing:  # of what was chosen for any family, what leaves least
            after = [_left(spec, results, model, defense, one) for one in sorted(ends)]
            harm = -1 if results.higher_is_better(spec.utility.benchmark, spec.utility.metric) is not False else 1
            left, kept, _ = max(after, key=lambda found: -math.inf if found[1] is None else harm * found[1])
        missing = gone
    return Line(
        model, defense, attack, kind, label, len(recipes), fields, left, kept, within, seconds, tuple(sorted(missing))
    )


def _left(spec: Cross, results: Results, model: str, defense: str, recipe: str) -> tuple[Estimate, float | None, bool]:
    """The utility that a recipe has, as a share of the defense's, and whether that is within the loss."""
    left = estimate(_sample(results, model, recipe, spec.utility))
    start = estimate(_sample(results, model, defense, spec.utility)).value
    kept = left.value / start if left.value is not None and start else None
    higher = results.higher_is_better(spec.utility.benchmark, spec.utility.metric) is not False
    within = kept is not None and (kept >= 1 - spec.utility.loss if higher else kept <= 1 + spec.utility.loss)
    return left, kept, within


def _worst(spec: Cross, results: Results, model: str, defense: str, recipes: list[str], family: Family) -> Any:
    """The worst of several recipes and of leaving the defense as it is, within the loss of utility."""
    shares = {one: share_of(results, model, one, family) for one in (defense, *recipes)}
    utility = {one: _sample(results, model, one, spec.utility) for one in (defense, *recipes)}
    shares, utility = _together({"": shares})[""], _together({"": utility})[""]
    return worst_case(
        {one: Attempt(shares[one], utility[one]) for one in shares},
        utility[defense],
        spec.utility.loss,
        highest=False,
        higher_utility=results.higher_is_better(spec.utility.benchmark, spec.utility.metric) is not False,
    )


def _together(samples: Mapping[str, Mapping[str, Sample]]) -> dict[str, dict[str, Sample]]:
    """All at the same seeds: the base model is measured at one, what is made of it at several."""
    seeds = max((sample.seeds for of in samples.values() for sample in of.values()), key=len)
    return {key: {name: at_seeds(sample, seeds) for name, sample in of.items()} for key, of in samples.items()}


def _sample(results: Results, model: str, recipe: str, measure: Any) -> Sample:
    taken = results.sample(model, recipe, measure.benchmark, measure.metric)
    if taken is None:
        raise ResultsError(
            f"{measure.benchmark} keeps no value of {measure.metric} per record for {model}, {recipe}, so that no "
            "worst case can be chosen on one half of the records and read on the other. Take a metric that is a mean "
            "over records."
        )
    return taken


def _seconds(spec: Cross, results: Results, model: str, recipe: str) -> float:
    cells = results.seeds(model, recipe, spec.compute.analysis)
    values = [cell.metric(spec.compute.metric)["value"] for cell in cells.values()]
    return sum(value or 0.0 for value in values) / len(values)


def _missing(
    spec: Cross, results: Results, model: str, defense: str, recipes: list[str], *, alone: bool = False
) -> tuple[str, ...]:
    """Which families, and whether utility and seconds, depend on what is to be shown as missing.

    alone: the metric of the one recipe is shown itself, and nothing is chosen.
    """
    of = {name: family.benchmark for name, family in spec.families.items()}
    needed = recipes[-1:] or [defense] if alone else [defense, *recipes]
    gone = [name for name, benchmark in of.items() if any(results.lacks(model, one, benchmark) for one in needed)]
    if any(results.lacks(model, one, spec.utility.benchmark) for one in (defense, *recipes)):
        gone.append(UTILITY)
    if any(results.lacks(model, one, spec.compute.analysis) for one in recipes):
        gone.append(SECONDS)
    return tuple(gone)


def _diverged(spec: Cross, results: Results, model: str, recipe: str, missing: Collection[str] = ()) -> bool:
    benchmarks = {family.benchmark for name, family in spec.families.items() if name not in missing}
    benchmarks |= {spec.utility.benchmark} if UTILITY not in missing else set()
    return any(results.diverged(model, recipe, name) for name in benchmarks)
