"""The held-out batches on which resistance is measured, and the loss on them; for DPO with the start's likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import next_token_loss
from bulwark.unlearning.likelihoods import StartLikelihoods
from bulwark.unlearning.padding import counted
from bulwark.unlearning.tampering import resistance
from bulwark.unlearning.tampering.settings import TamperingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Pair = tuple[Batch, Batch]


class HeldOut:
    """Held-out examples by adversary, on this rank. One batch per trajectory, the same at all its checkpoints."""

    def __init__(self, course: Course, settings: TamperingSettings) -> None:
        self.settings, self._pad_id = settings, course.pad_id
        self._streams: dict[str, StepBatches] = {}
        self._key = {
            adversary.name: "held_out" if adversary.held_out is None else f"held_out_{adversary.name}"
            for adversary in settings.adversaries
        }
        for key in sorted({*self._key.values()}):
            self._streams[key] = course.batches(course.examples_from(key).prompts, key)

    def of(self, adversary: str, number: int, device: torch.device) -> list[Batch]:
        """The micro-batches of trajectory `number`."""
        batches = self._streams[self._key[adversary]].of_step(number)
        if self.settings.resistance.count_padding:
            batches = (counted(batch, self.settings.training.max_tokens, self._pad_id) for batch in batches)
        return [batch.to(device) for batch in batches]

    def loss(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        """This micro-batch's share of L_TR at the weights of the moment."""
        chosen = self.settings.resistance
        losses: dict[str, Callable[[], Tensor]] = {
            "entropy": lambda: resistance.negative_entropy(engine, batch),
            "negative_cross_entropy": lambda: resistance.negative_cross_entropy(engine, batch, chosen.clamped),
            "inverse_cross_entropy": lambda: resistance.inverse_cross_entropy(engine, batch),
            "kl_from_uniform": lambda: resistance.kl_from_uniform(engine, batch),
        }
        return losses[chosen.loss]()

    def diagnosis(self, engine: DeepSpeedEngine, batches: list[Batch]) -> dict[str, Tensor]:
        """What is noted of the last checkpoint of a trajectory: the cross-entropy that the adversary has reached."""
        with torch.no_grad():
            return {"held_out_cross_entropy": sum(next_token_loss(engine, batch) for batch in batches)}

    def before_training(self, engine: DeepSpeedEngine, trajectories: int) -> None:
        """At the weights that training starts from, with the number of all trajectories; all ranks must call it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Preferences(HeldOut):
    """Held-out preferences for DPO, whose reference is the model that training starts from.

    Its log-probabilities are taken of all pairs that will be needed (the authors take those of every pair in the data
    set).
    """

    def __init__(self, course: Course, settings: TamperingSettings) -> None:
        self.settings = settings
        sides = {side: course.preferences_from("held_out", side).prompts for side in ("chosen", "rejected")}
        # Not by length, by which only one side of the pairs would be ordered.
        self._chosen = course.batches(sides["chosen"], "held_out", group_by_length=False)
        self._rejected = course.batches(sides["rejected"], "held_out", group_by_length=False)
        self.at_start = StartLikelihoods(self._likelihoods)

    def of(self, adversary: str, number: int, device: torch.device) -> list[Batch]:
        return [batch.to(device) for batch in self._chosen.of_step(number)]

    def loss(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        """-ln σ(β·z), averaged over the pairs of the whole held-out batch."""
        losses = resistance.dpo_loss(self.at_start.margins(engine, batch), self.settings.resistance.beta)
        return (losses * _filled(batch)).sum() / max(1, batch.step_sequences)

    def diagnosis(self, engine: DeepSpeedEngine, batches: list[Batch]) -> dict[str, Tensor]:
        """The share of pairs whose chosen response has gained more than the rejected one (a draw does not count)."""
        with torch.no_grad():
            wins = [((self.at_start.margins(engine, batch) > 0) & _filled(batch).bool()).sum() for batch in batches]
            return {"win_rate": sum(wins) / max(1, batches[0].step_sequences)}

    def before_training(self, engine: DeepSpeedEngine, trajectories: int) -> None:
        self.at_start.take(engine, (batch for number in range(trajectories) for batch in self._chosen.of_step(number)))

    def state_dict(self) -> dict[str, Any]:
        return self.at_start.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at_start.load_state_dict(state)

    def _likelihoods(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        rejected = self._rejected.alike(batch).to(batch.input_ids.device)
        chosen = resistance.log_probabilities(model, batch)
        return chosen, resistance.log_probabilities(model, rejected)


def held_out_of(course: Course, settings: TamperingSettings) -> HeldOut:
    return (Preferences if settings.resistance.loss == "dpo" else HeldOut)(course, settings)


def over_ranks(values: dict[str, Tensor]) -> dict[str, float]:
    """Shares added up over all ranks, as numbers; all ranks must call it."""
    if not values:
        return {}
    total = engines.over_ranks(torch.stack([torch.as_tensor(value).float() for value in values.values()]))
    return dict(zip(values, total.tolist(), strict=True))


def _filled(batch: Batch) -> Tensor:
    """1 for rows that hold an example, 0 for fillers, [rows]."""
    return torch.tensor([float(bool(row)) for row in batch.rows], device=batch.input_ids.device)
