"""TAR's outer step (Tamirisa et al. 2024, arXiv 2408.00761, Sec. 4 and Alg. 1): attack, look back, return, train.

Before each optimizer step an attack is simulated: K steps of fine-tuning, by an optimizer of its own, on the weights
themselves. At every s-th of its checkpoints θ_k the gradient of the resistance loss L_TR is taken on one held-out batch
and added up; the gradient through the attack is replaced by the gradient at θ_k (first-order MAML, Sec. 4.2). Then the
weights return to what they were, to the bit, and the step is

    λ_TR · Σ_k w_k ∇L_TR(θ_k) + λ_retain · ∇L_retain(θ).

MLAC-AR and SOPHON-AR (App. G.3) are the same loop with other losses.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.models.readout.losses import CrossEntropy
from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, at_targets, next_token_loss
from bulwark.unlearning.losses import distance
from bulwark.unlearning.reference import Reference
from bulwark.unlearning.tampering.attacks import Attacks, Draw
from bulwark.unlearning.tampering.held_out import held_out_of, over_ranks
from bulwark.unlearning.tampering.settings import TamperingSettings
from bulwark.unlearning.tampering.trajectory import Attack, Gathered, away

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

RECORD = "tampering.jsonl"


class Tampering(Objective):
    """The retain loss, with the gathered gradients of resistance added to its own.

    tampering.jsonl beside the checkpoint has a line per trajectory: what was drawn, the adversary's loss at every inner
    step, the resistance loss at every checkpoint, and the diagnosis at the last one.
    """

    def __init__(self, course: Course, settings: TamperingSettings) -> None:
        self.settings, self.total = settings, course.total_steps
        self.attacks = Attacks(course, settings)
        self.held_out = held_out_of(course, settings)
        retain = settings.retain
        self.reference = Reference(course, retain.reference) if retain.representations else None
        self.weights = settings.weighting.weights(settings.inner)
        self.record: list[dict[str, Any]] = []
        self._gathered: Gathered | None = None
        self._retaining = True

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        inner, alternating = self.settings.inner, self.settings.alternating
        self.held_out.before_training(engine, total * inner.trajectories)
        self._gathered = None
        self._retaining = not alternating or step % 2 == 1
        if alternating and step % 2 == 1:
            return
        gathered, loss = Gathered(engine), 0.0
        for number in range(step * inner.trajectories, (step + 1) * inner.trajectories):
            loss += self._trajectory(engine, gathered, self.attacks.draw(number), step) / inner.trajectories
        bound = self.settings.resistance.lower_bound
        if bound is None or loss >= bound:
            self._gathered = gathered

    def _trajectory(self, engine: DeepSpeedEngine, gathered: Gathered, draw: Draw, step: int) -> float:
        """Simulate one attack; return the weighted mean of the resistance losses of its checkpoints."""
        settings = self.settings
        scale = settings.resistance.weight / settings.inner.trajectories
        held_out = self.held_out.of(draw.adversary, draw.number, engine.device)
        attacked: list[Tensor] = []
        resisted: list[Tensor] = []
        with away(engine, settings.park_optimizer):
            attack = Attack(engine, settings.inner, draw.learning_rate)
            for k in range(settings.inner.steps):
                attacked.append(_backward(engine, self.attacks.batches(draw, k), next_token_loss))
                attack.step()
                if k in self.weights:
                    resisted.append(_backward(engine, iter(held_out), self.held_out.loss))
                    gathered.take(scale * self.weights[k])
            diagnosis = over_ranks(self.held_out.diagnosis(engine, held_out))
        losses = engines.over_ranks(torch.stack([*attacked, *resisted]).float()).tolist()
        attack_losses, resistance_losses = losses[: len(attacked)], losses[len(attacked) :]
        self.record.append(
            {"step": step, **asdict(draw), "attack": attack_losses, "resistance": resistance_losses, **diagnosis}
        )
        weights = list(self.weights.values())
        mean = sum(w * loss for w, loss in zip(weights, resistance_losses, strict=True)) / sum(weights)
        return mean

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """λ_retain · (CE + the mean distance of all hidden states from the reference's), this micro-batch's share."""
        retain = self.settings.retain
        weight = retain.weight if self._retaining else 0.0
        if self.reference is None or weight == 0:  # a backward pass there must be, of whatever counts nothing
            return weight * next_token_loss(model, batch)
        known = self.reference.hidden_states(model, batch)
        learned = CrossEntropy(batch.targets)
        output = at_targets(
            model, batch, loss=learned, weights=1.0 / max(1, batch.step_tokens), output_hidden_states=True
        )
        squared = retain.norm == "squared"
        moved = distance(output.hidden_states, known, batch.positions, squared).sum()
        return weight * (output.logits + moved / max(1, batch.step_positions))

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if self._gathered is not None:
            self._gathered.add_to_gradients()
            self._gathered = None

    def phase(self, step: int) -> str:
        if not self.settings.alternating:
            return "plain"
        return "retain" if step % 2 else "resist"

    def metrics(self) -> dict[str, float]:
        if not self.record:
            return {}
        last = self.record[-1]
        return {
            "tampering/attack_loss_first": last["attack"][0],
            "tampering/attack_loss_last": last["attack"][-1],
            "tampering/resistance_loss": sum(last["resistance"]) / len(last["resistance"]),
        } | {f"tampering/{name}": last[name] for name in ("held_out_cross_entropy", "win_rate") if name in last}

    def write(self, folder: Path) -> None:
        files.write_text(folder / RECORD, "".join(json.dumps(line) + "\n" for line in self.record))

    def report(self) -> dict[str, Any]:
        """λ_TR as it is set (nominal) and as it counts, with the sum of the weights (effective)."""
        inner = self.settings.inner
        nominal = self.settings.resistance.weight
        return {
            "tampering": {
                "lambda_nominal": nominal,
                "lambda_effective": nominal * sum(self.weights.values()),
                "checkpoints": list(self.weights),
                "weights": list(self.weights.values()),
                "batches_per_outer_step": inner.trajectories * (inner.steps + len(self.weights)) + 1,
                "examples": self.attacks.report(),
            }
        }

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record, "held_out": self.held_out.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.record = list(state["record"])
        self.held_out.load_state_dict(state["held_out"])


def _backward(engine: DeepSpeedEngine, batches: Any, loss_of: Any) -> Tensor:
    """Accumulate the gradients of one batch's micro-batches; return this rank's share of its loss."""
    micro = list(batches)
    total = torch.zeros((), device=engine.device)
    for number, batch in enumerate(micro, start=1):
        engine.set_gradient_accumulation_boundary(number == len(micro))
        loss = loss_of(engine, batch.to(engine.device))
        engines.backward(engine, loss)
        total += loss.detach()
    return total
