"""The worst case of the attacks on a recipe, in the place of the recipe, for tables, figures and claims."""

from __future__ import annotations

from dataclasses import dataclass

from bulwark.evaluation import worst_case as evaluated
from bulwark.evaluation.statistics import CONFIDENCE, Estimate, Sample
from bulwark.reporting.columns import Column, Measure, WorstCase, those_named
from bulwark.reporting.results import Results, ResultsError

READING = (
    "Worst case: of the attacks, the one with most harm among those within the loss of utility, chosen on one half of "
    "the records and read on the other, both ways averaged; beside it the attacks that were chosen."
)


@dataclass(frozen=True)
class Found:
    """The worst case of the attacks on a recipe. chosen: in words, which attacks it is of, or why there is none."""

    estimate: Estimate
    sample: Sample | None
    chosen: str
    attacks: tuple[str, ...]
    kept: float | None = None


def of(
    results: Results,
    model: str,
    recipe: str,
    measure: Measure | Column,
    spec: WorstCase,
    confidence: float = CONFIDENCE,
) -> Found:
    """The worst case over the attacks on `recipe` by a metric. Raises ResultsError for a metric without rows."""
    names = tuple(those_named(spec.over(recipe), results.recipes)) if spec.over(recipe) else ()
    if not names:
        return Found(Estimate(None, None, None, 0, {}, None), None, "no attack is listed", ())

    def sample(name: str, benchmark: str, metric: str) -> Sample:
        taken = results.sample(model, name, benchmark, metric)
        if taken is None:
            raise ResultsError(
                f"{benchmark} keeps no value of {metric} per record for {model}, {name}, so that no worst case can be "
                "chosen on one half of the records and read on the other. Take a metric that is a mean over records."
            )
        return taken

    utility = (spec.utility.benchmark, spec.utility.metric)
    found = evaluated.worst_case(
        {
            name: evaluated.Attack(sample(name, measure.benchmark, measure.metric), sample(name, *utility))
            for name in names
        },
        sample(recipe, *utility),
        spec.loss,
        highest=spec.harm == "highest",
        higher_utility=results.higher_is_better(*utility) is not False,
        confidence=confidence,
    )
    return Found(found.estimate, found.sample, _chosen(found, recipe, spec), names, found.kept)


def estimate_of(results: Results, model: str, recipe: str, column: Column) -> Estimate:
    """What a column shows of a recipe: the metric, or its worst case."""
    if column.worst_case is None:
        return results.estimate(model, recipe, column.benchmark, column.metric)
    return of(results, model, recipe, column, column.worst_case).estimate


def described(spec: WorstCase, recipe: str | None = None) -> str:
    """Of what a worst case is, in words; recipe: also of the attacks that know it."""
    attacks = (*spec.attacks, *(spec.attacks_on.get(recipe, ()) if recipe else sum(spec.attacks_on.values(), ())))
    named = ", ".join(dict.fromkeys(attacks))
    utility = f"{spec.utility.metric.replace('_', ' ')} of {spec.utility.benchmark}"
    return f"worst case of {named} within {100 * spec.loss:g} % of {utility}"


def _chosen(found: evaluated.WorstCase, recipe: str, spec: WorstCase) -> str:
    if found.before <= 0:
        return "there is no utility before it that could be lost"
    if None in found.chosen:
        where = "either half" if found.chosen == (None, None) else "one half"
        return f"none keeps {100 * (1 - spec.loss):g} % of utility on {where} of the records"
    return " / ".join(dict.fromkeys(name.removeprefix(f"{recipe}+") for name in found.chosen))
