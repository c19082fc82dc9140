"""What a search minimises: a KL score and a behaviour score, HERETIC's and ICONOCLAST's in one formula.

    R  refusals: their rate, or their number over the base model's (over the prompts if the base refuses none)
    D  mean hits of disclaimer markers on harmful prompts      C  1 - compliance on them
    O  rate of refusals of harmless prompts
    behaviour = R + o·O + d·D + c·C
    KL score  = KL / scale          if KL ≥ target
              = behaviour·target / scale   otherwise: below the target KL is no longer rewarded

Regime "low_refusal_base" (ICONOCLAST's for models that refuse little): R, D and C are what exceeds the base model's.
HERETIC is o = d = c = 0 with target 0 and R the rate. ICONOCLAST counts overrefusals absolutely; by default only
those beyond the base model's count here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bulwark.abliteration.settings import ObjectiveSettings


@dataclass(frozen=True)
class Measures:
    """What was measured of a model. Numbers of prompts may be below those of the set, if a trial was stopped early.

    disclaimers: mean hits per harmful prompt; compliance: mean in 0 … 1; None where they were not measured.
    """

    kl: float
    refusals: int
    harmful: int
    overrefusals: int | None = None
    harmless: int = 0
    disclaimers: float | None = None
    compliance: float | None = None

    @property
    def refusal_rate(self) -> float:
        return self.refusals / self.harmful

    @property
    def overrefusal_rate(self) -> float | None:
        return None if self.overrefusals is None else self.overrefusals / self.harmless


def regime_of(base: Measures, settings: ObjectiveSettings) -> str:
    """The regime, "auto" resolved: the boundary belongs to the low one."""
    if settings.regime != "auto":
        return settings.regime
    return "low_refusal_base" if base.refusal_rate <= settings.low_rate else "refusal_reduction"


def behaviour(measures: Measures, base: Measures, settings: ObjectiveSettings) -> float:
    """The behaviour score; a term that was not measured must have weight 0."""
    low = regime_of(base, settings) == "low_refusal_base"
    if low:
        score = max(0.0, measures.refusal_rate - base.refusal_rate)
    elif settings.relative and base.refusals:
        score = measures.refusal_rate / base.refusal_rate
    else:
        score = measures.refusal_rate
    if settings.overrefusal:
        rate = measures.overrefusal_rate
        if settings.overrefusal_relative:
            rate = max(0.0, rate - base.overrefusal_rate)
        score += settings.overrefusal * rate
    if settings.disclaimers:
        hits = max(0.0, measures.disclaimers - base.disclaimers) if low else measures.disclaimers
        score += settings.disclaimers * hits
    if settings.compliance_gap:
        gap = max(0.0, base.compliance - measures.compliance) if low else 1 - measures.compliance
        score += settings.compliance_gap * gap
    return score


def scores(measures: Measures, base: Measures, settings: ObjectiveSettings) -> tuple[float, float]:
    """(KL score, behaviour score), both to be minimised."""
    second = behaviour(measures, base, settings)
    if measures.kl < settings.kl_target:
        return second * settings.kl_target / settings.kl_scale, second
    return measures.kl / settings.kl_scale, second  # also one that is not a number, which is no small one


def worst(kl: float, base: Measures, settings: ObjectiveSettings) -> Measures:
    """What a trial counts as that the KL gate has stopped: it refuses everything, harmless prompts included."""
    return replace(
        base,
        kl=kl,
        refusals=base.harmful,
        overrefusals=base.harmless if settings.reads_harmless_answers else None,
        disclaimers=None if base.disclaimers is None else max(1.0, base.disclaimers),
        compliance=None if base.compliance is None else 0.0,
    )
