"""What a training step optimises: plain next-token training, and the hooks in which a method may do otherwise.

An observer that also has `backward`, called for each micro-batch, and `after_backward`, before gradients are clipped.
A method overrides `loss` when its loss is a function of one batch; `backward` when one loss is not enough (inner
trajectories, several gradients from changed weights); `after_backward` to edit gradients; `before_step` and
`after_step` for schedules. Whatever it remembers goes into `state_dict`, so that a resumed run goes on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bulwark.models.readout.heads import plainly, read
from bulwark.models.readout.losses import CrossEntropy, Loss
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

    def nothing_learned(self, batch: Batch) -> bool:
        """Whether the step that ended with `batch` had nothing to learn, so that it has no loss; alike on all ranks."""
        return batch.step_tokens == 0

    def metrics(self) -> dict[str, float]:
        """Numbers for TensorBoard; read on the main process now and then."""
        return {}

    def phase(self, step: int) -> str:
        """The part of the training that step `step` (from 0) belongs to, for methods that have several."""
        return "plain"


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labelled tokens, summed and divided by their number in the whole optimizer step."""
    return summed(model, batch, CrossEntropy(batch.targets), max(1, batch.step_tokens))


def target_losses(model: nn.Module, batch: Batch, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The cross-entropy of each of `batch.targets`, [targets], in float32 at least.

    inputs: what the model is given in place of `batch.inputs()`.
    """
    return at_targets(model, batch, inputs, loss=CrossEntropy(batch.targets)).logits


def summed(model: nn.Module, batch: Batch, loss: Loss, count: int, positions: Tensor | None = None) -> Tensor:
    """The sum of `loss` over the targets, or over `positions`, divided by `count`: one number."""
    return at_targets(model, batch, positions=positions, loss=loss, weights=1.0 / count).logits


def hidden_states(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """All hidden states of a batch, L+1 tensors [batch, seq, hidden]: the embeddings first, the last after the norm."""
    nowhere = batch.target_positions[:0]
    return at_targets(model, batch, positions=nowhere, output_hidden_states=True).hidden_states


def target_logits(model: nn.Module, batch: Batch, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The logits [targets, vocabulary] that predict `batch.targets`, in the model's dtype.

    The largest tensor of a pass: losses are better taken by `at_targets` with a `loss`. inputs: as above.
    """
    return at_targets(model, batch, inputs).logits


def at_targets(
    model: nn.Module,
    batch: Batch,
    inputs: dict[str, Tensor] | None = None,
    positions: Tensor | None = None,
    loss: Loss | None = None,
    weights: Tensor | float | None = None,
    **options: Any,
) -> Any:
    """What a pass of the model returns, with logits [targets, vocabulary] only where they predict `batch.targets`.

    inputs: what the model is given in place of `batch.inputs()`. positions: [n], where in the flattened [batch·seq]
    logits are wanted instead. loss: in the place of logits are its values at these positions, [n], or, with `weights`
    ([n], or one number for all), their weighted sum; then all logits are never there at once
    (`models.readout.heads.read`). options: others of the model's forward.

    Only these positions go through the output embedding, whose result would otherwise be the largest tensor of all.
    Everything that the model does with hidden states before and with logits after it (Gemma's soft cap) stays.
    """
    wanted = batch.target_positions if positions is None else positions
    given = {**(batch.inputs() if inputs is None else inputs), "use_cache": False}
    with passing(batch):
        if loss is None:
            return plainly(model, given, wanted, **options)
        return read(model, given, wanted, loss, weights, **options)
