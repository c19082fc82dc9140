"""Claims of the papers, checked against the scores. How they are shown: `bulwark.reporting.verdicts`.

A claim is a list of conditions; each is judged on each model by an interval, I = [low, high], at the claim's
confidence (95 %). For a comparison, I is the interval of the *improvement*: recipe minus `than`, or the reverse where
lower is better; for a threshold, that of the metric (Wilson's for rates). See `bulwark.evaluation.comparisons`.

    condition               holds                            fails                       opposite
    better, margin m        low > m, p < 5 %                 high < m, not opposite      high < 0, p < 5 %
    not_worse, margin m     low > -m                                                     high < -m
    equal, margin m         -m < low and high < m                                        high < -m or low > m
    at_least, value v       low >= v                         high < v
    at_most, value v        high <= v                        low > v

Everything else is open: there are too few records to decide. `p` is the two-sided permutation p-value of no
difference at all (5 % stands for one minus the confidence). A `better` whose seeds disagree on the sign of the
improvement is open even if it would hold: the seed may be the cause. A metric that is undefined (no record counts) is
open.

On a model the claim is contradicted if its headline, the first condition, comes out opposite; else not reproduced if
any condition fails or comes out opposite; else undecided if one is open; else reproduced. Over the models of the study
the same order applies to the models' verdicts: a claim is reproduced only if it is on every model. Effect, interval, n
and p-value of the claim are those of the headline, averaged over the models with equal weights, in which a record that
several models answered is one record; they never decide the verdict. All numbers are in the unit of the
scores files; a difference is `recipe` minus `than`.

Many claims on one page: each decided claim has the p-value of its verdict (`p_verdict`), two-sided where conditions are
joined, as intervals of 95 % are. Reproduced: every condition must hold on every model, so it is the largest of theirs
(intersection-union test). Contradicted, not reproduced: one condition on one model is enough, so it is the smallest
times their number (Bonferroni). Over the page they are corrected by Holm's procedure (1979) for the number of all its
claims, and a claim whose corrected p-value is not below 5 % is undecided (`corrected`). The undecided ones count, too:
which claims are decided is only seen from the data, and a p-value is that of a claim picked because it is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bulwark.evaluation.comparisons import Comparison, compare, compare_over_models
from bulwark.evaluation.statistics import Estimate, Sample, estimate, p_beyond, together
from bulwark.reporting import worst_cases
from bulwark.reporting.columns import those_named
from bulwark.reporting.results import Results, ResultsError
from bulwark.reporting.settings import Against, Bound, Claim, Condition
from bulwark.settings import validated

_SIDE = {"at_least": "above", "at_most": "below"}
_OTHER = {"above": "below", "below": "above"}
_VERDICTS = ("contradicted", "not reproduced", "undecided", "reproduced")  # the worst first


@dataclass(frozen=True)
class Finding:
    """One condition on one model: its entry in claims.json, and what an average over models needs.

    p_value: of the outcome, two-sided; None where it is open. measured, samples: of the metric, or of both recipes.
    """

    entry: dict[str, Any]
    p_value: float | None
    measured: Comparison | Estimate
    samples: tuple[Sample | None, ...]


def check_claim(name: str, spec: Claim | Mapping[str, Any], cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Check the claim `name` against the scores of its study: maps with model, recipe, seed, benchmark and scores.

    Returns the entry for claims.json. Raises ResultsError naming a missing result, StatisticsError if two recipes
    were scored on different records.
    """
    claim = spec if isinstance(spec, Claim) else validated(Claim, spec, f"config/claims/{name}.yaml")
    results = Results(cells)
    if not results.cells:
        raise ResultsError(f'The claim "{name}" was given no results: its study "{claim.study}" is empty.')
    conditions = [c for c in claim.conditions if not c.if_measured or c.terms.benchmark in results.benchmarks]
    findings = {
        model: [_judged(condition, model, index, results, claim.confidence) for condition in conditions]
        for index, model in enumerate(results.models)
    }
    verdicts = {
        model: _verdict([finding.entry["outcome"] for finding in of_model]) for model, of_model in findings.items()
    }
    verdict = min(verdicts.values(), key=_VERDICTS.index)
    shown = those_named(claim.recipes(), results.recipes)
    return {
        "id": name,
        "statement": claim.statement,
        "source": claim.source,
        "about": claim.about,
        "labels": claim.labels,
        "verdict": verdict,
        **_headline([of_model[0] for of_model in findings.values()], claim.confidence),
        "p_verdict": _p_of_verdict(verdict, list(findings.values())),
        "seeds": sorted({cell.seed for cell in results.cells if cell.recipe in shown}),
        "confidence": claim.confidence,
        "conditions": [_stated(condition) for condition in conditions],
        "not_measured": [_stated(condition) for condition in claim.conditions if condition not in conditions],
        "models": {
            model: {"verdict": verdicts[model], "conditions": [finding.entry for finding in of_model]}
            for model, of_model in findings.items()
        },
    }


def corrected(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims of one page, with `p_corrected` by Holm's procedure (1979); see the head of this module.

    An undecided claim has no p-value and counts as one of 1. One that does not outlive the correction becomes
    undecided, and `uncorrected_verdict` says what it would be alone.
    """
    order = sorted((claim["p_verdict"], index) for index, claim in enumerate(claims) if claim["p_verdict"] is not None)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, (p_value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(claims) - rank) * p_value))
        adjusted[index] = largest
    page = []
    for index, claim in enumerate(claims):
        lost = index in adjusted and adjusted[index] >= 1 - claim["confidence"]
        changes = {"verdict": "undecided", "uncorrected_verdict": claim["verdict"]} if lost else {}
        page.append({**claim, **changes, "p_corrected": adjusted.get(index)})
    return page


def _stated(condition: Condition) -> dict[str, Any]:
    return {"text": described(condition), **condition.model_dump(exclude_none=True)}


def described(condition: Condition) -> str:
    """A condition in words."""
    terms = condition.terms
    what = f"{terms.metric} on {terms.benchmark}"
    if terms.case:
        what += f", {worst_cases.described(terms.case)}"
    if isinstance(terms, Bound):
        sign = "≥" if condition.kind == "at_least" else "≤"
        return f"{what}: {terms.recipe} {sign} {terms.value:g}"
    relation = {
        "better": f"better than {terms.than}" + (f" by more than {terms.margin:g}" if terms.margin else ""),
        "not_worse": f"at most {terms.margin:g} worse than {terms.than}",
        "equal": f"within {terms.margin:g} of {terms.than}",
    }[condition.kind]
    return f"{what}: {terms.recipe} {relation}"


def _judged(condition: Condition, model: str, index: int, results: Results, confidence: float) -> Finding:
    """Judge a condition on a model; `index`, the model's place, seeds the resampling."""
    terms = condition.terms
    benchmark, metric = terms.benchmark, terms.metric
    higher = results.higher_is_better(benchmark, metric)
    compared = (terms.recipe, terms.than) if isinstance(terms, Against) else (terms.recipe,)
    under = {}
    if terms.case:
        under = {r: worst_cases.of(results, model, r, terms, terms.case, confidence) for r in compared}
    if any(found.sample is None for found in under.values()):
        return _without_attacks(condition, compared, higher, under)
    if isinstance(terms, Against):
        samples = tuple(_sample(results, model, recipe, terms, under) for recipe in compared)
        if None in samples:
            raise ResultsError(
                f"{benchmark} keeps no value of {metric} per record for {model}, so {terms.recipe} and "
                f"{terms.than} cannot be compared record by record. State the claim with at_least or at_most instead."
            )
        measured = compare(*samples, seed=index, confidence=confidence)
        effect, p_value = measured.difference, measured.p_value
        values = {recipe: estimate(of).value for recipe, of in zip((terms.recipe, terms.than), samples, strict=True)}
        if higher is None:
            raise ResultsError(
                f"{metric} of {benchmark} is better neither higher nor lower, so no claim can compare it."
            )
        sign = 1 if higher else -1
        outcome, reason = _comparison_outcome(condition.kind, terms.margin, measured, sign, 1 - confidence)
        p_outcome = _p_of_comparison(condition.kind, outcome, terms.margin, measured, sign)
    else:
        samples = (_sample(results, model, terms.recipe, terms, under),)
        if under:
            measured = under[terms.recipe].estimate
        else:
            measured = results.estimate(model, terms.recipe, benchmark, metric, confidence)
        effect, p_value = measured.value, p_beyond(measured.at, terms.value, _SIDE[condition.kind])
        values = {terms.recipe: effect}
        outcome, reason = _bound_outcome(condition.kind, terms.value, measured.interval)
        beyond = _SIDE[condition.kind] if outcome == "holds" else _OTHER[_SIDE[condition.kind]]
        p_outcome = None if outcome == "open" else p_beyond(measured.at, terms.value, beyond)
    entry = {
        "text": described(condition),
        "outcome": outcome,
        "reason": reason,
        "higher_is_better": higher,
        "values": values,
        "effect": effect,
        "interval": _listed(measured.interval),
        "n": measured.n,
        "p_value": p_value,
        "by_seed": {str(seed): value for seed, value in measured.by_seed.items()},
        **_attacks(terms, under),
    }
    return Finding(entry, p_outcome, measured, samples)


def _sample(
    results: Results, model: str, recipe: str, terms: Against | Bound, under: Mapping[str, worst_cases.Found]
) -> Sample | None:
    """The values of a recipe, or of the attacks on it."""
    return under[recipe].sample if under else results.sample(model, recipe, terms.benchmark, terms.metric)


def _without_attacks(
    condition: Condition, compared: Sequence[str], higher: bool | None, under: Mapping[str, worst_cases.Found]
) -> Finding:
    """A condition on attacks of which none counts: it is open, and says why."""
    why = "; ".join(f"{recipe}: {found.chosen}" for recipe, found in under.items() if found.sample is None)
    undefined = Estimate(None, None, None, max(found.estimate.n for found in under.values()), {}, None)
    entry = {
        "text": described(condition),
        "outcome": "open",
        "reason": f"there is no {'worst case' if condition.terms.worst_case else 'mean of attacks'} ({why})",
        "higher_is_better": higher,
        "values": {recipe: under[recipe].estimate.value for recipe in compared},
        "effect": None,
        "interval": None,
        "n": undefined.n,
        "p_value": None,
        "by_seed": {},
        **_attacks(condition.terms, under),
    }
    return Finding(entry, None, undefined, (None,))


def _attacks(terms: Against | Bound, under: Mapping[str, worst_cases.Found]) -> dict[str, Any]:
    """Which attacks there are and, of a worst case, which were chosen and the share of utility that these keep."""
    told = {
        recipe: {"attacks": list(found.attacks)}
        | ({"chosen": found.chosen, "utility_kept": found.kept} if terms.worst_case else {})
        for recipe, found in under.items()
    }
    return {"worst_case" if terms.worst_case else "average": told} if told else {}


def _comparison_outcome(kind: str, margin: float, comparison: Comparison, sign: int, level: float):
    """Outcome and reason; `sign` is -1 for a metric that is better lower, `level` that of significance."""
    if comparison.interval is None:
        return "open", "the metric is undefined: no record counts"
    low, high = sorted(sign * bound for bound in comparison.interval)
    significant = comparison.p_value < level
    if kind == "better":
        if high < 0 and significant:
            return "opposite", "it is worse"
        if high < margin:
            return "fails", "any improvement is below the margin" if margin else "there is no improvement"
        if low > margin and significant:
            if any(sign * value <= 0 for value in comparison.by_seed.values()):
                return "open", "better on average, but not at every seed"
            return "holds", "it is better by more than the margin" if margin else "it is better"
        if low > 0 and margin and significant:
            return "open", "it is better, but the interval holds the margin"
        return (
            "open",
            "the interval reaches from no improvement to more than the margin"
            if margin
            else "the interval holds no improvement",
        )
    if kind == "not_worse":
        if high < -margin:
            return "opposite", "it is worse by more than the margin"
        if low > -margin:
            return "holds", "if it is worse, then by less than the margin"
        return "open", "the interval holds the margin"
    if high < -margin or low > margin:
        return "opposite", "they differ by more than the margin"
    inside = -margin < low and high < margin
    return ("holds", "they differ by less than the margin") if inside else ("open", "the interval holds a margin")


def _p_of_comparison(kind: str, outcome: str, margin: float, comparison: Comparison, sign: int) -> float | None:
    """Two-sided p-value of an outcome of `_comparison_outcome`; None for an open one."""

    def above(bound: float) -> float:
        return comparison.p_above(bound) if sign > 0 else comparison.p_below(-bound)

    def below(bound: float) -> float:
        return comparison.p_below(bound) if sign > 0 else comparison.p_above(-bound)

    if outcome == "open":
        return None
    if kind == "better":
        if outcome == "holds":
            return max(above(margin), comparison.p_value)
        return below(margin) if outcome == "fails" else max(below(0.0), comparison.p_value)
    if kind == "not_worse":
        return above(-margin) if outcome == "holds" else below(-margin)
    if outcome == "holds":
        return max(above(-margin), below(margin))
    return min(1.0, 2 * min(below(-margin), above(margin)))


def _bound_outcome(kind: str, value: float, interval: tuple[float, float] | None) -> tuple[str, str]:
    if interval is None:
        return "open", "the metric has no interval: too few records count"
    low, high = interval
    if (low >= value) if kind == "at_least" else (high <= value):
        return "holds", "the whole interval is on the stated side"
    if (high < value) if kind == "at_least" else (low > value):
        return "fails", "the whole interval is on the other side"
    return "open", "the interval holds the value"


def _verdict(outcomes: Sequence[str]) -> str:
    """The verdict on one model from the outcomes of the conditions, the headline's first."""
    if outcomes[0] == "opposite":
        return "contradicted"
    if "fails" in outcomes or "opposite" in outcomes:
        return "not reproduced"
    return "undecided" if "open" in outcomes else "reproduced"


def _p_of_verdict(verdict: str, findings: Sequence[Sequence[Finding]]) -> float | None:
    """Two-sided p-value of a claim's verdict from its findings, by model and condition; None if it is undecided."""
    if verdict == "undecided":
        return None
    asked = [of_model[:1] if verdict == "contradicted" else of_model for of_model in findings]
    tried = [finding for of_model in asked for finding in of_model]
    if verdict == "reproduced":
        return max(finding.p_value for finding in tried)
    speaking = ("opposite",) if verdict == "contradicted" else ("fails", "opposite")
    return min(1.0, len(tried) * min(one.p_value for one in tried if one.entry["outcome"] in speaking))


def _headline(findings: Sequence[Finding], confidence: float) -> dict[str, Any]:
    """Effect, interval, n and p-value of the first condition over all models."""
    keys = ("effect", "interval", "n", "p_value")
    if len(findings) == 1:
        return {key: findings[0].entry[key] for key in keys}
    samples = [finding.samples for finding in findings]
    if len({type(finding.measured) for finding in findings}) > 1:  # on one of the models there is no worst case
        return {**dict.fromkeys(keys), "n": max(finding.measured.n for finding in findings)}
    if isinstance(findings[0].measured, Comparison):
        mean = compare_over_models(samples, confidence=confidence)
        return dict(zip(keys, (mean.difference, _listed(mean.interval), mean.n, mean.p_value), strict=True))
    p_values = [finding.entry["p_value"] for finding in findings]
    # All models must satisfy the bound, so the largest p-value is the joint one (intersection-union test).
    joint = None if None in p_values else max(p_values)
    estimates = [finding.measured for finding in findings]
    if (None,) not in samples and "worst_case" not in findings[0].entry:
        mean = estimate(together([sample for (sample,) in samples]), confidence)
        return dict(zip(keys, (mean.value, _listed(mean.interval), mean.n, joint), strict=True))
    return {**_mean_of_files(estimates), "p_value": joint}


def _mean_of_files(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Effect, interval and n of worst cases and without rows: bounds are averaged, as if the models moved together."""
    values = [estimate.value for estimate in estimates]
    intervals = [estimate.interval for estimate in estimates]
    effect = None if None in values else sum(values) / len(values)
    known = effect is not None and None not in intervals
    interval = [sum(bounds) / len(bounds) for bounds in zip(*intervals, strict=True)] if known else None
    return {"effect": effect, "interval": interval, "n": max(estimate.n for estimate in estimates)}


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
