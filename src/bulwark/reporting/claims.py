"""Claims of the papers, checked against the scores. How they are shown: `bulwark.reporting.verdicts`.

A claim is a list of conditions; each is judged on each model by an interval, I = [low, high], at the claim's
confidence (95 %). For a comparison, I is the BCa bootstrap interval of the *improvement*: recipe minus `than`, or the
reverse where lower is better; for a threshold, that of the metric (Wilson's for rates). See
`bulwark.evaluation.statistics`.

    condition               holds                            fails                       opposite
    better, margin m        low > 0, p < 5 %, high >= m      high < m, not opposite      high < 0, p < 5 %
    not_worse, margin m     low > -m                                                     high < -m
    equal, margin m         -m < low and high < m                                        high < -m or low > m
    at_least, value v       low >= v                         high < v
    at_most, value v        high <= v                        low > v

Everything else is open: there are too few records to decide. `p` is the two-sided permutation p-value of no
difference at all (5 % stands for one minus the confidence); for thresholds, that of the one-sided score test. A
`better` whose seeds disagree on the sign of the improvement is open even if it would hold: the seed may be the cause. A
metric that is undefined (no record counts) is open.

On a model the claim is contradicted if its headline, the first condition, comes out opposite; else not reproduced if
any condition fails or comes out opposite; else undecided if one is open; else reproduced. Over the models of the study
the same order applies to the models' verdicts: a claim is reproduced only if it is on every model. Effect, interval, n
and p-value of the claim are those of the headline, averaged over the models with equal weights (n added up); they
never decide the verdict. All numbers are in the unit of the scores files; a difference is `recipe` minus `than`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bulwark.evaluation.statistics import Comparison, Estimate, compare, estimate, mean_comparison, threshold_p_value
from bulwark.reporting.results import Results, ResultsError
from bulwark.reporting.settings import Against, Bound, Claim, Condition
from bulwark.settings import validated

_VERDICTS = ("contradicted", "not reproduced", "undecided", "reproduced")  # the worst first


@dataclass(frozen=True)
class Finding:
    """One condition on one model: its entry in claims.json, and the numbers that an average over models needs."""

    entry: dict[str, Any]
    measured: Comparison | Estimate


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
    return {
        "id": name,
        "statement": claim.statement,
        "source": claim.source,
        "about": claim.about,
        "labels": claim.labels,
        "verdict": min(verdicts.values(), key=_VERDICTS.index),
        **_headline([of_model[0] for of_model in findings.values()], claim.confidence),
        "seeds": sorted({cell.seed for cell in results.cells if cell.recipe in claim.recipes()}),
        "confidence": claim.confidence,
        "conditions": [_stated(condition) for condition in conditions],
        "not_measured": [_stated(condition) for condition in claim.conditions if condition not in conditions],
        "models": {
            model: {"verdict": verdicts[model], "conditions": [finding.entry for finding in of_model]}
            for model, of_model in findings.items()
        },
    }


def _stated(condition: Condition) -> dict[str, Any]:
    return {"text": described(condition), **condition.model_dump(exclude_none=True)}


def described(condition: Condition) -> str:
    """A condition in words."""
    terms = condition.terms
    if isinstance(terms, Bound):
        sign = "≥" if condition.kind == "at_least" else "≤"
        return f"{terms.metric} on {terms.benchmark}: {terms.recipe} {sign} {terms.value:g}"
    relation = {
        "better": f"better than {terms.than}" + (f", by {terms.margin:g} for it to matter" if terms.margin else ""),
        "not_worse": f"at most {terms.margin:g} worse than {terms.than}",
        "equal": f"within {terms.margin:g} of {terms.than}",
    }[condition.kind]
    return f"{terms.metric} on {terms.benchmark}: {terms.recipe} {relation}"


def _judged(condition: Condition, model: str, index: int, results: Results, confidence: float) -> Finding:
    """Judge a condition on a model; `index`, the model's place, seeds the resampling."""
    terms = condition.terms
    benchmark, metric = terms.benchmark, terms.metric
    higher = results.higher_is_better(benchmark, metric)
    if isinstance(terms, Against):
        samples = [results.sample(model, recipe, benchmark, metric) for recipe in (terms.recipe, terms.than)]
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
        outcome, reason = _comparison_outcome(
            condition.kind, terms.margin, measured, 1 if higher else -1, 1 - confidence
        )
    else:
        measured, rate = results.estimate(model, terms.recipe, benchmark, metric, confidence)
        effect, p_value = measured.value, threshold_p_value(measured, terms.value, condition.kind, rate)
        values = {terms.recipe: effect}
        outcome, reason = _bound_outcome(condition.kind, terms.value, measured.interval)
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
    }
    return Finding(entry, measured)


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
            return "fails", "any improvement is too small to matter"
        if low > 0 and significant:
            if any(sign * value <= 0 for value in comparison.by_seed.values()):
                return "open", "better on average, but not at every seed"
            return "holds", "it is better"
        return "open", "the interval reaches from no improvement to one that matters"
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


def _headline(findings: Sequence[Finding], confidence: float) -> dict[str, Any]:
    """Effect, interval, n and p-value of the first condition over all models."""
    keys = ("effect", "interval", "n", "p_value")
    if len(findings) == 1:
        return {key: findings[0].entry[key] for key in keys}
    measured = [finding.measured for finding in findings]
    if isinstance(measured[0], Comparison):
        mean = mean_comparison(measured, confidence)
        return dict(zip(keys, (mean.difference, _listed(mean.interval), mean.n, mean.p_value), strict=True))
    values = [estimate.value for estimate in measured]
    intervals = [estimate.interval for estimate in measured]
    effect = None if None in values else sum(values) / len(values)
    interval = None
    if effect is not None and None not in intervals:
        # Independent models: half-widths add in squares (each side separately, as Wilson's are not symmetric).
        below, above = (
            sum((v - bound) ** 2 for v, bound in zip(values, bounds, strict=True)) ** 0.5 / len(values)
            for bounds in zip(*intervals, strict=True)
        )
        interval = [effect - below, effect + above]
    p_values = [finding.entry["p_value"] for finding in findings]
    # All models must satisfy the bound, so the largest p-value is the joint one (intersection-union test).
    joint = None if None in p_values else max(p_values)
    return dict(zip(keys, (effect, interval, sum(estimate.n for estimate in measured), joint), strict=True))


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
