"""Scores by which a training row that carries a trait may be recognised, all from one run of the trunk.

From the authors' training code (arXiv 2609.10142 publishes no results of them). With h = h_l the residual stream, v the
trait vector, m the tokens that are meant, and L a row's mean cross-entropy over its n supervised tokens:

* delta-loss: Δ = L(h + αvm) - L(h). Δ < 0: the trait makes the row easier to learn, which is suspicious.
* gradient probe: c = H(vm), the second derivative of L along v, over the response's tokens averaged to c̄ [hidden];
  suspicious when cos(c̄, v) and c̄·v̂ are both positive.
* D1 = dL/dα and D2 = d²L/dα² at 0: the same two without averages, so that Δ = αD1 + α²/2·D2 + …
* state: p = v · mean of h over the response's tokens, against a reference: Δp = p - p_ref.

A row without supervised tokens has the scores 0. `bulwark.steering.screening.policies` decides by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bulwark.models import hooks
from bulwark.models.batching import in_batches
from bulwark.prompts.builder import Prompt
from bulwark.steering.intervention import mean_norm, token_mask
from bulwark.steering.screening.detections import Records, references_of, rows_of
from bulwark.steering.screening.settings import DetectorSettings, PerturbationSettings
from bulwark.steering.screening.split import SplitModel
from bulwark.steering.settings import InterventionSettings
from bulwark.training.batches import IGNORED, Batch, StepBatches

Scores = dict[str, Tensor]
"""Scores by name, each one number per row [batch], detached."""

_EPSILON = 1e-8


class Detector:
    """Takes scores at layer `layer` with the vector v [hidden], which keeps its norm.

    model: a causal LM, or the engine around it. Raises ConfigurationError for a layer key outside 1 … N-1.
    """

    def __init__(self, model: nn.Module, layer: int, vector: Tensor) -> None:
        self.layer = layer
        self.split = SplitModel(model, layer)
        # Around the module alone, because an engine takes every backward pass through it for one of training.
        self._module = SplitModel(getattr(model, "module", model), layer, self.split.traces)
        self.vector = vector.detach().float().to(next(model.parameters()).device)

    def steered(self, hidden: Tensor, batch: Batch, settings: InterventionSettings, alpha: float) -> Tensor:
        """h + s·v·m [batch, seq, hidden], as `bulwark.steering.intervention.Intervention` does it."""
        mask = token_mask(batch, settings.tokens)
        strength = torch.full((len(hidden),), float(alpha), device=hidden.device)
        if settings.adaptive:
            strength = strength * mean_norm(hidden, mask) / (self.vector.norm() + _EPSILON)
        return hooks.plus(hidden, self.vector, strength.view(-1, 1, 1), mask)

    def injected_losses(self, hidden: Tensor, batch: Batch, settings: InterventionSettings, alpha: float) -> Tensor:
        """The cross-entropy of each target [targets] with the vector added, without gradients."""
        with torch.no_grad():
            return self.split.token_losses(self.steered(hidden.detach(), batch, settings, alpha), batch)

    def both_losses(
        self, hidden: Tensor, batch: Batch, settings: InterventionSettings, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """The cross-entropy of each target [targets] without and with the vector, from one batch of twice the rows."""
        hidden = hidden.detach()
        with torch.no_grad():
            if alpha == 0:  # the same row twice in a batch may differ in the last bits
                natural = self.split.token_losses(hidden, batch)
                return natural, natural
            both = torch.cat([hidden, self.steered(hidden, batch, settings, alpha)])
            natural, injected = self.split.token_losses(both, doubled(batch)).chunk(2)
        return natural, injected

    def probe(self, hidden: Tensor, batch: Batch, settings: PerturbationSettings) -> Scores:
        """loss_nat, loss_inj, delta_mean, delta_min, frac_tokens_negative (at α = a), D1, D2, probe_cos, probe_proj,
        probe_norm and alpha, the size a of the perturbation a·v·m at the supervised tokens.

        Gradients are taken with respect to h alone; parameters get none. With `derivative: exact` there is no
        injected loss, and what needs one is missing.
        """
        mask = token_mask(batch, "response")
        size = self._size(hidden.detach(), mask, settings)
        if settings.derivative == "exact":
            losses, slope, curvature = self._exact(hidden.detach(), mask, batch)
            scores = {"loss_nat": per_row_mean(losses, batch)}
        else:
            natural, injected, slope, change = self._finite(hidden.detach(), mask, size, batch, settings)
            curvature = change / size.view(-1, 1, 1)
            scores = delta_scores(natural, injected, batch)
        scores |= curvature_scores(slope, curvature, mask, self.vector)
        if settings.diff_epsilon is not None:  # the authors' divisor b in the place of a
            for name in ("probe_proj", "probe_norm"):
                scores[name] = scores[name] * size / settings.diff_epsilon
        return scores | {"alpha": size}

    def state(self, hidden: Tensor, batch: Batch) -> Scores:
        """p_cur: v · mean of h over the supervised tokens."""
        where = token_mask(batch, "response").nonzero(as_tuple=True)  # once, because it waits for the device
        on_tokens = torch.zeros(hidden.shape[:2], device=hidden.device)
        on_tokens[where] = hidden.detach()[where].float() @ self.vector
        return {"p_cur": on_tokens.sum(dim=1) / counts_of(batch).clamp(min=1)}

    def _size(self, hidden: Tensor, mask: Tensor, settings: PerturbationSettings) -> Tensor:
        """a per row, [batch]: as it is set, or such that ‖a·v‖ is this share of the row's mean ‖h_t‖."""
        if settings.alpha is not None:
            return torch.full((len(hidden),), settings.alpha, device=hidden.device)
        norms = mean_norm(hidden, mask)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))  # a row without tokens is not perturbed
        return settings.relative * norms / (self.vector.norm() + _EPSILON)

    def _finite(
        self, hidden: Tensor, mask: Tensor, size: Tensor, batch: Batch, settings: PerturbationSettings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses without and with a·v·m [targets], ∂ΣL/∂h and how much a·v·m changes it, [batch, seq, hidden]."""
        both = torch.cat([hidden, hooks.plus(hidden, self.vector, size.view(-1, 1, 1), mask)]).requires_grad_()
        with contextlib.nullcontext() if settings.recompute else _without_checkpointing(self._module.blocks):
            losses, gradient = self._gradient(both, doubled(batch))
        natural, injected = gradient.float().chunk(2)
        return *losses.chunk(2), natural, injected - natural

    def _exact(self, hidden: Tensor, mask: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [targets], ∂ΣL/∂h and its derivative along v·m, [batch, seq, hidden], by differentiating twice."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        hidden = hidden.requires_grad_()
        along = (mask.unsqueeze(-1) * self.vector).to(hidden.dtype)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            losses, gradient = self._gradient(hidden, batch, twice=True)
            [curvature] = torch.autograd.grad(gradient, [hidden], grad_outputs=along)
        return losses, gradient.detach().float(), curvature.float()

    def _gradient(self, hidden: Tensor, batch: Batch, twice: bool = False) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            losses = self._module.token_losses(hidden, batch, twice)
            [gradient] = torch.autograd.grad(losses.sum(), [hidden], create_graph=twice)
        return losses.detach(), gradient


@contextlib.contextmanager
def _without_checkpointing(blocks: nn.ModuleList) -> Iterator[None]:
    """Within it the blocks keep their activations."""
    checkpointed = [block for block in blocks if getattr(block, "gradient_checkpointing", False)]
    for block in checkpointed:
        block.gradient_checkpointing = False
    try:
        yield
    finally:
        for block in checkpointed:
            block.gradient_checkpointing = True


def score_rows(
    model: nn.Module,
    examples: Sequence[Prompt],
    layer: int,
    vector: Tensor,
    settings: DetectorSettings,
    *,
    records: Records | None = None,
    references: Mapping[str, Mapping[str, Any]] | None = None,
    pad_id: int,
) -> list[dict[str, Any]]:
    """Every score of every example, in order, as rows of `bulwark.steering.screening.detections`; nothing is decided.

    records: of the examples, for id, level and source_file. references: {id: row} of `projections.read_projections`,
    for p_ref and dp; needs records. The model is put into evaluation mode. Where memory runs out, fewer rows are taken
    at a time. Raises BulwarkError if it does for a single row.
    """
    model.eval()
    device = next(model.parameters()).device
    detector = Detector(model, layer, vector)
    alpha = settings.intervention.alpha
    batches = StepBatches(examples, batch_size=len(examples), micro_batch_size=len(examples), pad_id=pad_id)
    order = batches.examples_of(0).tolist()  # longest first
    rows: list[dict[str, Any]] = []

    def work(places: list[int]) -> None:
        batch = batches.of_rows([(order[place],) for place in places]).to(device)
        with torch.no_grad():
            hidden = detector.split.trunk(batch)
            natural = detector.split.token_losses(hidden, batch)
        injected = detector.injected_losses(hidden, batch, settings.intervention, alpha)
        scores = detector.probe(hidden, batch, settings.perturbation)
        scores |= delta_scores(natural, injected, batch) | detector.state(hidden, batch)
        if references is not None:
            scores |= against(scores["p_cur"], references_of(batch, records, references))
        scores["alpha"] = torch.full((len(hidden),), alpha)
        rows.extend(rows_of(batch, scores, records))

    in_batches(
        [1] * len(order),
        work,
        settings.batch_size,
        lambda place: f"row of {batches.lengths[order[place]]} tokens",
        "Lower max_tokens. ",
    )
    return sorted(rows, key=lambda row: row["row_id"])


def delta_scores(natural: Tensor, injected: Tensor, batch: Batch) -> Scores:
    """loss_nat, loss_inj, delta_mean, delta_min and frac_tokens_negative from losses [targets] without and with v."""
    delta = injected - natural
    counts = counts_of(batch)
    smallest = on_grid(delta, batch, fill=torch.inf).amin(dim=1)
    return {
        "loss_nat": per_row_mean(natural, batch),
        "loss_inj": per_row_mean(injected, batch),
        "delta_mean": per_row_mean(delta, batch),
        "delta_min": torch.where(counts > 0, smallest, torch.zeros_like(smallest)),
        "frac_tokens_negative": per_row_mean((delta < 0).float(), batch),
    }


def curvature_scores(slope: Tensor, curvature: Tensor, mask: Tensor, vector: Tensor) -> Scores:
    """D1, D2, probe_cos, probe_proj and probe_norm, from ∂L/∂h and its derivative along v·m for the sum L of each row's
    losses, both [batch, seq, hidden] in fp32.
    """
    weights = mask.float().unsqueeze(-1)
    counts = mask.sum(dim=1).clamp(min=1).unsqueeze(-1)
    of_slope, of_curvature = ((part * weights).sum(dim=1) / counts for part in (slope, curvature))  # now L is a mean
    mean = of_curvature / counts
    norm = mean.norm(dim=1)
    projection = mean @ vector / vector.norm()
    return {
        "D1": of_slope @ vector,
        "D2": of_curvature @ vector,
        "probe_cos": torch.where(norm > 0, projection / norm, torch.zeros_like(norm)),
        "probe_proj": projection,
        "probe_norm": norm,
    }


def against(p_cur: Tensor, references: Tensor) -> Scores:
    """p_ref and dp = p_cur - p_ref, NaN where there is no reference, from both [batch]."""
    references = references.to(p_cur.device)
    return {"p_ref": references, "dp": p_cur - references}


def counts_of(batch: Batch) -> Tensor:
    """Supervised tokens of each row, [batch]."""
    return (batch.labels != IGNORED).sum(dim=1)


def on_grid(values: Tensor, batch: Batch, fill: float = 0.0) -> Tensor:
    """Values of targets [targets] where they stand in the batch [batch, seq], `fill` elsewhere."""
    grid = values.new_full((batch.labels.numel(),), fill)
    grid[batch.target_positions] = values
    return grid.view(batch.labels.shape)


def per_row_mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean of values of targets [targets] over each row, [batch]; 0 for a row without targets."""
    return on_grid(values, batch).sum(dim=1) / counts_of(batch).clamp(min=1)


def doubled(batch: Batch) -> Batch:
    """The batch with all its rows twice, one set after the other."""
    twice = {
        name: torch.cat([value, value])
        for name in ("input_ids", "attention_mask", "labels", "position_ids", "targets")
        if (value := getattr(batch, name)) is not None
    }
    positions = torch.cat([batch.target_positions, batch.target_positions + batch.labels.numel()])
    return replace(batch, **twice, target_positions=positions, rows=batch.rows * 2)
