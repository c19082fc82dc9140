"""What a training step optimises: plain next-token training, and the places where a method may do otherwise.

The loop calls, in every optimizer step,

    before_step → backward for each micro-batch → after_backward → (clip, optimizer, schedule) → after_step

A method overrides `loss` when its loss is a function of one batch; `backward` when one loss is not enough (inner
trajectories, several gradients from changed weights); `after_backward` to edit gradients; and the two hooks around
the step for schedules. Whatever it remembers goes into `state_dict`, so that a resumed run goes on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from bulwark.steering.embedded import embedded_in
from bulwark.training import engine as engines
from bulwark.training.batches import Batch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Objective:
    """Next-token training on the labelled tokens; the base of all objectives."""

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        """Before the first step, and before any state is loaded: the weights are still those it starts from."""

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """Before optimizer step `step`, which counts from 0."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the step's loss (scalar): the shares of all micro-batches and ranks add up.

        So a sum over tokens is divided by `batch.step_tokens`, one over examples by `batch.step_sequences`.
        """
        return next_token_loss(model, batch)

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        """Accumulate the gradient of one micro-batch; return its share of the loss, detached.

        All ranks must go through the model equally often, whatever they find in their batch.
        """
        loss = self.loss(engine, batch)
        engines.backward(engine, loss)
        return loss.detach()

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """With the step's gradients complete and averaged over ranks (see `engine.gradient_of`), not yet clipped."""

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """After optimizer step `step`, before the model is evaluated or saved."""

    def validation_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the evaluation loss, by which the best weights are chosen."""
        return next_token_loss(model, batch)

    def metrics(self) -> dict[str, float]:
        """Numbers for TensorBoard; read on the main process now and then."""
        return {}

    def finish(self, model: nn.Module, step: int, total: int) -> None:
        """The last word on the finished model, which is whole and has the weights after `step` steps."""

    def report(self) -> dict[str, Any]:
        """What the manifest tells of it beside the losses, as plain data; asked on every process at the end."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labelled tokens, summed and divided by their number in the whole optimizer step."""
    return F.cross_entropy(target_logits(model, batch).float(), batch.targets, reduction="sum") / max(
        1, batch.step_tokens
    )


def target_logits(model: nn.Module, batch: Batch, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The logits [targets, vocabulary] that predict `batch.targets`, in the model's dtype.

    inputs: what the model is given in place of `batch.inputs()`.

    Only these positions go through the output embedding, whose result would otherwise be the largest tensor of all.
    Everything that the model does with hidden states before and with logits after it (Gemma's soft cap) stays.
    """
    module = getattr(model, "module", model)

    def only_targets(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return (hidden.flatten(0, 1).index_select(0, batch.target_positions), *rest)

    hook = module.get_output_embeddings().register_forward_pre_hook(only_targets)
    carried = embedded_in(module)
    if carried is not None:
        carried.announce(batch)
    try:
        logits = model(**(batch.inputs() if inputs is None else inputs), use_cache=False).logits
    finally:
        hook.remove()
        if carried is not None:
            carried.announce(None)
    if logits.dim() == 3:  # the output embedding's weight was used, but not its module
        logits = logits.flatten(0, 1).index_select(0, batch.target_positions)
    return logits
