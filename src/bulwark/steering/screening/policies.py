"""What the detecting steps do with a micro-batch: which passes in which order, and which rows or tokens are learned.

Each policy runs the trunk once, with its graph, decides from detached scores, and what is learned goes once through the
blocks above with gradients. Costs in units of one forward pass, where training with gradient checkpointing is 4 and
blocks above l are the share q of all:

| policy | beside plain training's 4 | q = 0.3 |
|---|---|---|
| delta-loss, mask | q: injected rows above l | 1.08 × |
| delta-loss, inject | 2q: natural and injected rows above l | 1.15 × |
| gradient probe, finite | 6q: two forward passes above l, recomputed, and their gradients of h | 1.45 × |
| state-aware | nothing | 1 × |

Where the decision precedes the last pass, flagged rows are not part of it; if none is left, a row of one token goes
through with nothing to learn, so that all ranks run the same collectives. All comparisons are strict, and a row without
supervised tokens is never flagged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bulwark.steering.screening.detections import Records, references_of
from bulwark.steering.screening.detectors import (
    Detector,
    Scores,
    against,
    counts_of,
    delta_scores,
    on_grid,
    per_row_mean,
)
from bulwark.steering.screening.settings import PerturbationSettings
from bulwark.steering.screening.split import select_rows, target_rows
from bulwark.steering.settings import InterventionSettings
from bulwark.training.batches import IGNORED, Batch


@dataclass(frozen=True)
class Verdict:
    """What became of a micro-batch.

    losses: [m] cross-entropies with their graph. kept: [m] bool, those to learn. scores: each [batch]. weight: [batch],
    the share of each row's tokens that is learned. broken: [batch] bool, rows with something that is not finite, with
    which no gradient can be used. decisions: one of `detections.DECISIONS` per row.
    """

    losses: Tensor
    kept: Tensor
    scores: Scores
    weight: Tensor
    broken: Tensor
    decisions: list[str]


class Policy(ABC):
    """Decides about the rows of micro-batches. score: the one that the decision is about, for curves."""

    score: str

    @abstractmethod
    def judge(self, detector: Detector, batch: Batch, alpha: float) -> Verdict:
        """Run the trunk, take scores, decide, and run what is learned with gradients. alpha: of the injection."""


class DeltaLoss(Policy):
    """Rows, or tokens, to which the vector is of help: Δ < threshold. See `bulwark.steps.delta_loss` for the modes."""

    def __init__(
        self,
        intervention: InterventionSettings,
        *,
        mode: Literal["mask", "inject"],
        granularity: Literal["sample", "token"],
        strategy: Literal["mean", "min"],
        threshold: float,
    ) -> None:
        self.intervention, self.mode, self.granularity, self.threshold = intervention, mode, granularity, threshold
        self.score = f"delta_{strategy}" if granularity == "sample" else "delta_mean"

    def judge(self, detector: Detector, batch: Batch, alpha: float) -> Verdict:
        hidden = detector.split.trunk(batch)
        if self.mode == "inject":
            natural, injected = detector.both_losses(hidden, batch, self.intervention, alpha)
        else:
            losses = detector.split.token_losses(hidden, batch)
            natural, injected = losses.detach(), detector.injected_losses(hidden, batch, self.intervention, alpha)
        scores = delta_scores(natural, injected, batch) | detector.state(hidden, batch)
        finite = finite_rows(hidden, *scores.values())
        flagged = (scores[self.score] < self.threshold) & (counts_of(batch) > 0)
        decision = "dropped"
        if self.mode == "inject":
            steered = detector.steered(hidden, batch, self.intervention, alpha)
            losses = detector.split.token_losses(torch.where(flagged.view(-1, 1, 1), steered, hidden), batch)
            kept, decision = torch.ones_like(losses, dtype=torch.bool), "injected"
        elif self.granularity == "token":
            kept = injected - natural >= self.threshold
            flagged, decision = per_row_mean((~kept).float(), batch) > 0, "partly"
        else:
            kept = ~flagged[target_rows(batch)]
        finite &= on_grid(losses.detach(), batch).isfinite().all(dim=1)
        scores["alpha"] = torch.full((len(hidden),), float(alpha), device=hidden.device)
        weight = per_row_mean(kept.float(), batch)
        return Verdict(losses, kept, scores, weight, ~finite, _decisions(batch, flagged, ~finite, decision))


class GradientProbe(Policy):
    """Rows whose loss bends upwards along the vector: cos(c̄, v) > cos_threshold and c̄·v̂ > proj_threshold."""

    score = "probe_proj"

    def __init__(self, perturbation: PerturbationSettings, *, cos_threshold: float, proj_threshold: float) -> None:
        self.perturbation, self.cos_threshold, self.proj_threshold = perturbation, cos_threshold, proj_threshold

    def judge(self, detector: Detector, batch: Batch, alpha: float) -> Verdict:
        hidden = detector.split.trunk(batch)
        scores = detector.probe(hidden, batch, self.perturbation) | detector.state(hidden, batch)
        flagged = (scores["probe_cos"] > self.cos_threshold) & (scores["probe_proj"] > self.proj_threshold)
        return _learning_the_others(flagged, detector, hidden, batch, scores, finite_rows(hidden, *scores.values()))


class StateAware(Policy):
    """Rows further along the vector than the untouched model's own answer to the same prompt: Δp > margin.

    references: {id: row} of a projections file; rows it excludes have no Δp and are never flagged.
    """

    score = "dp"

    def __init__(self, records: Records, references: Mapping[str, Mapping[str, Any]], *, margin: float) -> None:
        self.records, self.references, self.margin = records, references, margin

    def judge(self, detector: Detector, batch: Batch, alpha: float) -> Verdict:
        hidden = detector.split.trunk(batch)
        scores = detector.state(hidden, batch)
        p_cur = scores["p_cur"]
        finite = finite_rows(hidden, p_cur)
        at_start = references_of(batch, self.records, self.references, "current_projection").to(p_cur.device)
        scores |= against(p_cur, references_of(batch, self.records, self.references)) | {"drift": p_cur - at_start}
        return _learning_the_others(scores["dp"] > self.margin, detector, hidden, batch, scores, finite)


def finite_rows(hidden: Tensor, *scores: Tensor) -> Tensor:
    """Which rows have finite hidden states [batch, seq, hidden] and finite scores, each [batch]: [batch] bool."""
    finite = hidden.detach().isfinite().flatten(1).all(dim=1)
    for score in scores:
        finite = finite & score.isfinite()
    return finite


def filler(batch: Batch, pad_id: int = 0) -> Batch:
    """A batch in the place of this one, of a single token and with nothing to learn."""
    return replace(
        batch,
        input_ids=torch.full_like(batch.input_ids[:1, :1], pad_id),
        attention_mask=torch.zeros_like(batch.attention_mask[:1, :1]),
        labels=torch.full_like(batch.labels[:1, :1], IGNORED),
        target_positions=batch.target_positions[:0],
        targets=batch.targets[:0],
        rows=((),),
    )


def _learning_the_others(
    flagged: Tensor, detector: Detector, hidden: Tensor, batch: Batch, scores: Scores, finite: Tensor
) -> Verdict:
    """Flagged rows go no further than the layer, the others are learned."""
    flagged = flagged & (counts_of(batch) > 0)
    rows = (~flagged).nonzero().squeeze(1)
    means = torch.full((len(flagged),), torch.nan, device=hidden.device)
    if len(rows) == len(flagged):
        left, chosen = hidden, batch
    elif len(rows):
        left, chosen = hidden[rows], select_rows(batch, rows)
    else:
        left, chosen = hidden[:1, :1], filler(batch)
    learned = detector.split.token_losses(left, chosen)
    if len(rows):
        means[rows] = per_row_mean(learned.detach(), chosen)
    finite = finite & (means.isfinite() | flagged)
    scores.setdefault("loss_nat", means)
    weight = (~flagged & (counts_of(batch) > 0)).float()
    everything = torch.ones_like(learned, dtype=torch.bool)
    return Verdict(learned, everything, scores, weight, ~finite, _decisions(batch, flagged, ~finite, "dropped"))


def _decisions(batch: Batch, flagged: Tensor, broken: Tensor, flag: str) -> list[str]:
    marks = torch.stack([broken, counts_of(batch) == 0, flagged], dim=1).tolist()
    return [
        "not_finite" if wrong else "no_target" if empty else flag if marked else "kept"
        for wrong, empty, marked in marks
    ]
