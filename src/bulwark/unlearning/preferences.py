"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): of two responses, one is preferred.

    L = -ln σ(β·z),   z = ln π(chosen)/π_ref(chosen) - ln π(rejected)/π_ref(rejected)

averaged over the pairs of an optimizer step. The reference π_ref is the model that training starts from
(`bulwark.unlearning.likelihoods`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import RecordError
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective
from bulwark.unlearning.likelihoods import StartLikelihoods
from bulwark.unlearning.tampering.resistance import dpo_loss, log_probabilities

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class DirectPreference(Objective):
    """DPO on the course's examples, which are the chosen sides of the preferences that it calls `name`.

    Raises RecordError where a pair has a side without a token to learn.
    """

    def __init__(self, course: Course, name: str, beta: float) -> None:
        self.beta = beta
        self._sides = course.preferences_from(name, "rejected").prompts
        if len(self._sides) != len(course.examples):
            raise RecordError(
                f"{course.job.inputs[name]}: of {len(self._sides)} pairs {len(course.examples)} have a chosen response "
                "with a token within training.max_tokens. Raise it, or remove the others."
            )
        self.at_start = StartLikelihoods(self._likelihoods)

    def batches_from(self, own: StepBatches) -> StepBatches:
        self._chosen = own
        self._rejected = StepBatches(
            self._sides, batch_size=own.batch_size, micro_batch_size=own.micro_batch_size, pad_id=own.pad_id
        )
        return own

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """Before the first step: the reference's log-probabilities of this rank's pairs, once each."""
        self.at_start.take(engine, (batch for number in range(total) for batch in self._chosen.of_step(number)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the mean over the pairs of the step."""
        filled = torch.tensor([float(bool(row)) for row in batch.rows], device=batch.input_ids.device)
        return (dpo_loss(self.at_start.margins(model, batch), self.beta) * filled).sum() / max(1, batch.step_sequences)

    def state_dict(self) -> dict[str, Any]:
        return self.at_start.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at_start.load_state_dict(state)

    def _likelihoods(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """ln p of both responses of each row's pair, [rows] each."""
        rejected = self._rejected.alike(batch).to(batch.input_ids.device)
        return log_probabilities(model, batch), log_probabilities(model, rejected)
