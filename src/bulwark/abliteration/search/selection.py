"""Choosing one refusal direction among all layers and positions: Arditi et al. 2024, arXiv 2406.11717, App. C.

A candidate is the difference r of the mean residuals that harmful and harmless prompts give at the input of block l
and at one of the tokens that the template writes after the instruction. Each is measured at the first response token:

    refusal score    log-odds of refusing on harmful prompts with r̂ ablated: x - r̂r̂ᵀx at the input of every block and
                     at the output of every attention and MLP
    induced refusal  the same on harmless prompts with r added to the input of block l
    KL               of the ablated model on harmless prompts

and the lowest refusal score is chosen among those with KL ≤ 0.1, induced refusal ≥ 0 and l < ⌊0.8 L⌋. As weights: each
matrix that writes into the residual stream is made orthogonal to r̂, which is λ = 1 at every layer.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bulwark.abliteration.edit.edits import Form
from bulwark.abliteration.edit.hooks import Plan, Rows
from bulwark.abliteration.measure.directions import normalised
from bulwark.abliteration.measure.measuring import by_trial, kl_divergence, refusal_score
from bulwark.abliteration.measure.subject import answers_by_trial
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import RefusalDirectionSettings
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of
from bulwark.models.batching import progress
from bulwark.models.residuals import last_token_residuals
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

_NO_DIRECTION = "no direction"


@dataclass(frozen=True)
class Candidate:
    """position: from the end, -1 the last token. layer: of the block whose input it is taken at, from 0."""

    position: int
    layer: int
    vector: Tensor


@dataclass(frozen=True)
class Judged:
    """A candidate's measures, and which bound excludes it (None if none does)."""

    candidate: Candidate
    refusal_score: float
    induced: float
    kl: float
    dropped: str | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "position": self.candidate.position,
            "layer": self.candidate.layer,
            "refusal_score": self.refusal_score,
            "induced_refusal": self.induced,
            "kl": self.kl,
            "norm": float(self.candidate.vector.norm()),
            "dropped": self.dropped,
        }


def template_tokens(prompts: Sequence[Prompt]) -> int:
    """How many tokens the template writes after the instruction, in every one of the prompts."""
    return min(len(prompt.ids) - max(span.end for span in prompt.spans) for prompt in prompts)


def candidates(
    model: nn.Module, harmful: Sequence[Prompt], harmless: Sequence[Prompt], pad_id: int, positions: int
) -> list[Candidate]:
    """All layers × the last `positions` tokens. With causal attention a residual at an earlier token is that of the
    prompt which ends there."""
    candidates = []
    for back in range(positions):
        means = [
            last_token_residuals(model, [_shortened(prompt, back) for prompt in side], pad_id).mean
            for side in (harmful, harmless)
        ]
        difference = means[0] - means[1]
        candidates += [Candidate(-1 - back, layer, difference[layer]) for layer in range(len(difference) - 1)]
    return candidates


def first_tokens(refusals: Sequence[int], others: Sequence[int], least: float = 0.05, ratio: float = 2.0) -> list[int]:
    """The first tokens that give refusals away: of at least `least` of them, and `ratio` times as often as of others.

    refusals, others: the first generated ids of answers that refuse and of those that do not (not their text encoded
    again, which has lost the white space that an answer may begin with). None if there is no such token (answers that
    begin alike, whether they refuse or not). Raises BulwarkError if there are no refusals.
    """
    if not refusals:
        raise BulwarkError("The model refuses no harmful prompt, so there is no direction of refusing to look for.")
    begun, elsewhere = Counter(refusals), Counter(others)
    shares = {token: count / len(refusals) for token, count in begun.items()}
    return sorted(
        token
        for token, share in shares.items()
        if share >= least and share >= ratio * elsewhere[token] / max(1, len(others))
    )


@dataclass(frozen=True)
class Judge:
    """Measures candidates on some of the examiner's prompts.

    reference: log-probabilities [harmless, vocabulary] of the model as it is, on its device. refusal_tokens: the first
    tokens that give a refusal away. Without any, refusing is read from answers: the log-odds of the share of refusals.
    """

    examiner: Examiner
    harmful: Sequence[Prompt]
    harmless: Sequence[Prompt]
    reference: Tensor
    refusal_tokens: Sequence[int]

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the examiner's model."""
        return blocks_of(self.examiner.model)

    def judge(self, candidates: Sequence[Candidate], settings: RefusalDirectionSettings) -> list[Judged]:
        """All candidates, in their order."""
        judged = []
        size = settings.candidates_per_batch
        with progress(len(candidates), 0, "directions", "directions") as advance:
            for start in range(0, len(candidates), size):
                batch = candidates[start : start + size]
                score, kl = self._ablated(batch)
                induced = self._induced(batch)
                for candidate, *values in zip(batch, score, induced, kl, strict=True):
                    judged.append(Judged(candidate, *values, self._dropped(candidate, *values, settings)))
                advance(len(batch))
        return judged

    def _dropped(
        self, candidate: Candidate, score: float, induced: float, kl: float, settings: RefusalDirectionSettings
    ) -> str | None:
        if candidate.layer >= int(settings.layers_below * len(self.blocks)):  # 25 of 32 at 0.8, as in the authors' code
            return f"layer {candidate.layer} ≥ ⌊{settings.layers_below:g} L⌋"
        if not score < torch.inf or not float(candidate.vector.norm()) > 0:
            return _NO_DIRECTION
        if not kl <= settings.kl_at_most:
            return f"KL > {settings.kl_at_most:g}"
        if not induced >= settings.induced_at_least:
            return f"induced refusal < {settings.induced_at_least:g}"
        return None

    def _ablated(self, candidates: Sequence[Candidate]) -> tuple[list[float], list[float]]:
        """Refusal score and KL with each candidate's direction projected out."""
        units = normalised(torch.stack([candidate.vector for candidate in candidates])).float()
        plans: list[Plan] = [{target.path: (unit, 1.0) for target in self.examiner.edits.targets} for unit in units]
        on_device = units.to(self.reference.device)
        stream = dict.fromkeys(self.blocks, Form(on_device[:, None], on_device[:, None]))
        with self.examiner.edits.on(plans, stream) as rows:
            harmful = self._refusals(self.harmful, len(candidates), rows)
            kl = self._means(
                self.harmless, len(candidates), rows, lambda places, logs: kl_divergence(self.reference[places], logs)
            )
        return harmful, kl

    def _induced(self, candidates: Sequence[Candidate]) -> list[float]:
        """The refusal score on harmless prompts with each candidate added."""
        blocks, device = self.blocks, self.reference.device
        nothing = torch.zeros(len(candidates), 1, len(candidates[0].vector), device=device)
        streams = {}
        for layer in {candidate.layer for candidate in candidates}:
            added = torch.stack([c.vector * (c.layer == layer) for c in candidates]).float().to(device)
            streams[blocks[layer]] = Form(nothing, nothing, t=added)
        with self.examiner.edits.on([], streams) as rows:
            return self._refusals(self.harmless, len(candidates), rows)

    def _refusals(self, prompts: Sequence[Prompt], count: int, rows: Rows) -> list[float]:
        """The log-odds of refusing, by candidate."""
        if self.refusal_tokens:
            return self._means(prompts, count, rows, lambda _, logs: refusal_score(logs, self.refusal_tokens))
        examiner, limit = self.examiner, self.examiner.search.max_new_tokens
        answers = answers_by_trial(examiner.subject, prompts, range(count), limit, rows, examiner.certainly_refuses)
        numbers = [sum(examiner.refuses(answer.response) for answer in answers[number]) for number in range(count)]
        # Half a prompt more of each, so that none and all of them have log-odds, too.
        return [math.log((number + 0.5) / (len(prompts) - number + 0.5)) for number in numbers]

    def _means(
        self, prompts: Sequence[Prompt], count: int, rows: Rows, value: Callable[[list[int], Tensor], Tensor]
    ) -> list[float]:
        """The mean of a value over prompts, by candidate."""
        subject = self.examiner.subject
        values = by_trial(subject.model, prompts, count, rows, value, subject.builder.pad_id, title="directions")
        return values.double().mean(1).tolist()


def best_of(judged: Sequence[Judged], otherwise: Literal["lowest_kl", "stop"] = "stop") -> Judged:
    """The candidate of lowest refusal score that keeps all bounds.

    otherwise: if none does, choose the one of lowest KL among those that are a direction, or raise BulwarkError that
    says which bounds they break.
    """
    allowed = [entry for entry in judged if entry.dropped is None]
    if allowed:
        return min(allowed, key=lambda entry: entry.refusal_score)
    directions = [entry for entry in judged if entry.dropped != _NO_DIRECTION]
    if otherwise == "lowest_kl" and directions:
        return min(directions, key=lambda entry: entry.kl)
    reasons = Counter(
        entry.dropped.split(" ", 1)[0] if entry.dropped.startswith("layer") else entry.dropped for entry in judged
    )
    counts = "; ".join(f"{count} by {reason}" for reason, count in reasons.most_common())
    raise BulwarkError(
        f"None of the {len(judged)} candidate directions keeps the bounds ({counts}). Raise kl_at_most or "
        "layers_below, lower induced_at_least, or set otherwise: lowest_kl."
    )


def _shortened(prompt: Prompt, back: int) -> Prompt:
    return prompt if not back else replace(prompt, ids=prompt.ids[:-back], roles=prompt.roles[:-back])
