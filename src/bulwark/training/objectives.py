"""What a training step optimises: plain next-token training, and the hooks in which a method may do otherwise.

An observer that also has `backward`, called for each micro-batch, and `after_backward`, before gradients are clipped.
A method overrides `loss` when its loss is a function of one batch; `backward` when one loss is not enough (inner
trajectories, several gradients from changed weights); `after_backward` to edit gradients; `before_step` and
`after_step` for schedules. Whatever it remembers goes into `state_dict`, so that a resumed run goes on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.observers import Observer, passing

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Objective(Observer):
    """Next-token training on the labelled tokens; the base of all objectives."""

    def batches_from(self, own: StepBatches) -> StepBatches:
        """The batches that the loop goes through; `own` are those of the settings. Before the engine is built."""
        return own

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the step's loss (scalar): the shares of all micro-batches and ranks add up.

        So a sum over tokens is divided by `batch.step_tokens`, one over examples by `batch.step_sequences`.
        """
        return next_token_loss(model, batch)

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        """Accumulate the gradient of one micro-batch; return its share of the loss, detached.

        All ranks must go through the model equally often, whatever is in their batch.
        """
        loss = self.loss(engine, batch)
        engines.backward(engine, loss)
        return loss.detach()

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """With the step's gradients complete and averaged over ranks (see `engine.gradient_of`), not yet clipped."""

    def validation_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the evaluation loss, by which the best weights are chosen."""
        return next_token_loss(model, batch)

    def metrics(self) -> dict[str, float]:
        """Numbers for TensorBoard; read on the main process now and then."""
        return {}

    def phase(self, step: int) -> str:
        """The part of the training that step `step` (from 0) belongs to, for methods that have several."""
        return "plain"


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labelled tokens, summed and divided by their number in the whole optimizer step."""
    return F.cross_entropy(target_logits(model, batch).float(), batch.targets, reduction="sum") / max(
        1, batch.step_tokens
    )


def target_logits(model: nn.Module, batch: Batch, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The logits [targets, vocabulary] that predict `batch.targets`, in the model's dtype.

    inputs: what the model is given in place of `batch.inputs()`.
    """
    return at_targets(model, batch, inputs).logits


def hidden_states(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """All hidden states of a batch, L+1 tensors [batch, seq, hidden]: the embeddings first, the last after the norm."""
    return at_targets(model, batch, output_hidden_states=True).hidden_states


def at_targets(
    model: nn.Module,
    batch: Batch,
    inputs: dict[str, Tensor] | None = None,
    positions: Tensor | None = None,
    **options: Any,
) -> Any:
    """What a pass of the model returns, with logits [targets, vocabulary] only where they predict `batch.targets`.

    inputs: what the model is given in place of `batch.inputs()`. positions: [n], where in the flattened [batch·seq]
    logits are wanted instead. options: others of the model's forward.

    Only these positions go through the output embedding, whose result would otherwise be the largest tensor of all.
    Everything that the model does with hidden states before and with logits after it (Gemma's soft cap) stays.
    """
    module = getattr(model, "module", model)
    wanted = batch.target_positions if positions is None else positions

    def only_targets(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return (hidden.flatten(0, 1).index_select(0, wanted), *rest)

    hook = module.get_output_embeddings().register_forward_pre_hook(only_targets)
    try:
        with passing(batch):
            output = model(**(batch.inputs() if inputs is None else inputs), use_cache=False, **options)
    finally:
        hook.remove()
    if output.logits.dim() == 3:  # the output embedding's weight was used, but not its module
        output.logits = output.logits.flatten(0, 1).index_select(0, wanted)
    return output
