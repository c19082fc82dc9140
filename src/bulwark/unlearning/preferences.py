"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): of two responses, one is preferred.

    L = -ln σ(β·z),   z = ln π(chosen)/π_ref(chosen) - ln π(rejected)/π_ref(rejected)

averaged over the pairs of an optimizer step. The reference π_ref is the model that training starts from: its
log-probabilities of all pairs that the training comes to are taken before the first step, so that no second model is
held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import RecordError
from bulwark.training import engine as engines
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective
from bulwark.unlearning.tampering.resistance import dpo_loss, log_probabilities, preference_margins

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
        self._reference: dict[int, tuple[float, float]] | None = None

    def batches_from(self, own: StepBatches) -> StepBatches:
        self._chosen = own
        self._rejected = StepBatches(
            self._sides, batch_size=own.batch_size, micro_batch_size=own.micro_batch_size, pad_id=own.pad_id
        )
        return own

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        """Before the first step: the reference's log-probabilities of this rank's pairs, once each."""
        if self._reference is not None:
            return
        self._reference = {}
        mode = engine.training
        engine.eval()
        with torch.no_grad():
            for number in range(total):
                for batch in self._chosen.of_step(number):
                    new = any(set(row) - self._reference.keys() for row in batch.rows)
                    if not engines.over_ranks(torch.tensor(float(new), device=engine.device)):
                        continue  # on no rank: the data set begins anew
                    values = [side.tolist() for side in self._likelihoods(engine, batch.to(engine.device))]
                    for row, *both in zip(batch.rows, *values, strict=True):
                        self._reference |= {example: (both[0], both[1]) for example in row}
        engine.train(mode)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """This micro-batch's share of the mean over the pairs of the step."""
        filled = torch.tensor([float(bool(row)) for row in batch.rows], device=batch.input_ids.device)
        return (dpo_loss(self._margins(model, batch), self.beta) * filled).sum() / max(1, batch.step_sequences)

    def state_dict(self) -> dict[str, Any]:
        return {"reference": [[example, *values] for example, values in (self._reference or {}).items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reference = {int(example): (chosen, rejected) for example, chosen, rejected in state["reference"]}

    def _likelihoods(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """ln p of both responses of each row's pair, [rows] each."""
        rejected = self._rejected.alike(batch).to(batch.input_ids.device)
        return log_probabilities(model, batch), log_probabilities(model, rejected)

    def _margins(self, model: nn.Module, batch: Batch) -> Tensor:
        known = self._reference or {}
        reference = torch.tensor([known[row[0]] if row else (0.0, 0.0) for row in batch.rows]).T
        return preference_margins(*self._likelihoods(model, batch), *reference.to(batch.input_ids.device))
