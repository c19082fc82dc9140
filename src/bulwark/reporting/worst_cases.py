"""The worst case of the attacks on a recipe, or their mean, in the place of the recipe: for tables, figures, claims.

The mean is TAR's post-attack accuracy (Tamirisa et al. 2024, arXiv 2408.00761, Sec. 5): over all adversaries and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bulwark.evaluation import worst_case as evaluated
from bulwark.evaluation.statistics import CONFIDENCE, Estimate, Sample, at_seeds, averaged, estimate
from bulwark.reporting.columns import AverageCase, Column, Measure, WorstCase, those_named
from bulwark.reporting.results import Results, ResultsError

READING = (
    "Worst case: of the attacks, the one with most harm among those within the loss of utility, chosen on one half of "
    "the records and read on the other, both ways averaged; beside it the attacks that were chosen. To leave the model "
    "as it is costs no utility: where no attack does more harm within the loss, it is what the model did before."
)
MEAN = (
    "Mean of attacks: over attacks and seeds; a record with all its attacks and seeds is one cluster, so that errors "
    "are over records, not over attacks."
)


_NO_ATTACK = "no attack"
_NEEDED = {
    WorstCase: "no worst case can be chosen on one half of the records and read on the other",
    AverageCase: "no record can be averaged over the attacks",
}


@dataclass(frozen=True)
class Found:
    """The worst case of the attacks on a recipe, or their mean.

    chosen: in words, which attacks it is of, or why there is none. kept: the share of utility that a worst case leaves.
    """

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
    spec: WorstCase | AverageCase,
    confidence: float = CONFIDENCE,
) -> Found:
    """The worst case, or the mean, over the attacks on `recipe` by a metric; without trials whose training diverged.

    Raises ResultsError for a metric without rows, StatisticsError for records or seeds that differ between attacks.
    """
    listed = tuple(those_named(spec.over(recipe), results.recipes)) if spec.over(recipe) else ()
    names = tuple(name for name in listed if not results.diverged(model, name, measure.benchmark))
    gone = f"{len(listed) - len(names)} of {len(listed)} attacks diverged"
    if not names:
        return Found(Estimate(None, None, None, 0, {}, None), None, gone if listed else "no attack is listed", ())
    apart = f"; {gone}" if len(names) < len(listed) else ""

    def sample(name: str, benchmark: str, metric: str) -> Sample:
        taken = results.sample(model, name, benchmark, metric)
        if taken is None:
            raise ResultsError(
                f"{benchmark} keeps no value of {metric} per record for {model}, {name}, so that {_NEEDED[type(spec)]}"
                ". Take a metric that is a mean over records."
            )
        return taken

    if isinstance(spec, AverageCase):
        mean = averaged({name: sample(name, measure.benchmark, measure.metric) for name in names})
        return Found(estimate(mean, confidence), mean, _mean_of(len(names)) + apart, names)
    harm, utility = (measure.benchmark, measure.metric), (spec.utility.benchmark, spec.utility.metric)
    attacks = {name: evaluated.Attack(sample(name, *harm), sample(name, *utility)) for name in names}
    seeds = attacks[names[0]].harm.seeds
    before = evaluated.Attack(at_seeds(sample(recipe, *harm), seeds), at_seeds(sample(recipe, *utility), seeds))
    found = evaluated.worst_case(
        {recipe: before, **attacks},  # first, so that an attack that does no more than it is not chosen
        sample(recipe, *utility),
        spec.loss,
        highest=spec.harm == "highest",
        higher_utility=results.higher_is_better(*utility) is not False,
        confidence=confidence,
    )
    return Found(found.estimate, found.sample, _chosen(found, recipe) + apart, names, found.kept)


def lacks(results: Results, model: str, recipe: str, column: Column) -> bool:
    """Whether something that a column shows of a recipe is to be shown as missing.

    Of attacks that is any of them: the worst of fewer would show a defense as stronger.
    """
    recipes, benchmarks = [recipe], [column.benchmark]
    if column.case is not None:
        recipes += those_named(column.case.over(recipe), results.recipes) if column.case.over(recipe) else []
    if column.worst_case is not None:
        benchmarks.append(column.worst_case.utility.benchmark)
    elif column.average is not None:
        del recipes[0]
    return any(results.lacks(model, one, benchmark) for one in recipes for benchmark in benchmarks)


def estimate_of(results: Results, model: str, recipe: str, column: Column) -> Estimate:
    """What a column shows of a recipe: the metric, or its worst case."""
    if column.case is None:
        return results.estimate(model, recipe, column.benchmark, column.metric)
    return of(results, model, recipe, column, column.case).estimate


def reading(columns: Sequence[Column]) -> list[str]:
    """How columns of attacks are to be read, in sentences; none if there are none."""
    kinds = {READING: any(c.worst_case for c in columns), MEAN: any(c.average for c in columns)}
    told: dict[str, list[str]] = {}
    for column in columns:
        if column.case:
            told.setdefault(described(column.case), []).append(column.label)
    sentences = [sentence for sentence, there in kinds.items() if there]
    named = "; ".join(f"{', '.join(labels)}: {text}" for text, labels in told.items())
    return [*sentences, f"{named}."] if told else []


def described(spec: WorstCase | AverageCase, recipe: str | None = None) -> str:
    """Of what a worst case or a mean is, in words; recipe: also of the attacks that know it."""
    attacks = (*spec.attacks, *(spec.attacks_on.get(recipe, ()) if recipe else sum(spec.attacks_on.values(), ())))
    named = ", ".join(dict.fromkeys(attacks))
    if isinstance(spec, AverageCase):
        return f"mean of {named}"
    utility = f"{spec.utility.metric.replace('_', ' ')} of {spec.utility.benchmark}"
    return f"worst case of {named} within {100 * spec.loss:g} % of {utility}"


def _mean_of(attacks: int) -> str:
    return f"mean of {attacks} attack{'s' if attacks > 1 else ''}"


def _chosen(found: evaluated.WorstCase, recipe: str) -> str:
    if found.before <= 0:
        return "there is no utility before it that could be lost"
    if None in found.chosen:  # not even of the model as it is
        where = "either half" if found.chosen == (None, None) else "one half"
        return f"on {where} of the records there is no harm, or no utility, to choose by"
    return " / ".join(dict.fromkeys(_NO_ATTACK if n == recipe else n.removeprefix(f"{recipe}+") for n in found.chosen))
