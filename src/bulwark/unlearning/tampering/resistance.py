"""Losses at attacked weights (TAR, arXiv 2408.00761, Sec. 4 and App. C.3; MLAC and SOPHON in App. G.3).

Each is this micro-batch's share of a mean over the whole held-out batch: over its tokens, or, for DPO, over its pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bulwark.models.readout.losses import Each, wide
from bulwark.training.batches import Batch
from bulwark.training.objectives import summed, target_losses
from bulwark.unlearning.losses import entropy, log_one_minus


def negative_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """-mean H over all tokens of the batch (App. C.3): the flatter the predictions, the lower."""
    of_each = Each(lambda logits, _: -entropy(logits))
    return summed(model, batch, of_each, max(1, batch.step_positions), batch.positions)


def negative_cross_entropy(model: nn.Module, batch: Batch, clamped: bool = True) -> Tensor:
    """-mean min(CE, ln V) over the labelled tokens (MLAC-AR): what cannot be predicted worse than by guessing is left.

    clamped: false for the plain negative, which has no lower bound. The clamp is taken token by token, so that the loss
    does not depend on how the batch is divided.
    """

    def of_each(logits: Tensor, rows: slice) -> Tensor:
        losses = F.cross_entropy(wide(logits), batch.targets[rows], reduction="none")
        return -(losses.clamp(max=math.log(logits.shape[-1])) if clamped else losses)

    return summed(model, batch, Each(of_each), max(1, batch.step_tokens))


def inverse_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """-mean ln(1 - p(target)) over the labelled tokens, SOPHON's first loss."""
    of_each = Each(lambda logits, rows: -log_one_minus(logits, batch.targets[rows]))
    return summed(model, batch, of_each, max(1, batch.step_tokens))


def kl_from_uniform(model: nn.Module, batch: Batch) -> Tensor:
    """mean KL(uniform ‖ p) = -mean_v ln(V·p_v) over the labelled tokens' predictions, SOPHON's second loss."""

    def of_each(logits: Tensor, _: slice) -> Tensor:
        return -F.log_softmax(wide(logits), dim=-1).mean(-1) - math.log(logits.shape[-1])

    return summed(model, batch, Each(of_each), max(1, batch.step_tokens))


def log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """ln p of each row's labelled tokens together, [rows]: of the response, given its prompt."""
    losses = target_losses(model, batch)
    rows = batch.target_positions // batch.input_ids.shape[1]
    return -torch.zeros(len(batch.rows), device=losses.device).index_add(0, rows, losses)


def preference_margins(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> Tensor:
    """z = (ln π(chosen) - ln π(rejected)) - (ln π_ref(chosen) - ln π_ref(rejected)), [pairs] (Rafailov et al. 2023)."""
    return (chosen - rejected) - (reference_chosen - reference_rejected)


def dpo_loss(margins: Tensor, beta: float) -> Tensor:
    """-ln σ(β·z) of each pair (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7); ln 2 where nothing has been learned."""
    return -F.logsigmoid(beta * margins)
