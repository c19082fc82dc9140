"""Training on what a policy lets through: the objective of delta-loss, gradient probe and state-aware training.

The loss of a step is the mean cross-entropy over the tokens that are learned, of the whole optimizer step and over all
ranks. How many these are is known only when every micro-batch has been judged, so gradients are accumulated as those
of all tokens' mean and then scaled. (The authors average per micro-batch, so that flagged rows shrink the step.) With
nothing flagged the training is the plain one, bit for bit; a step of which nothing is left leaves the weights alone
and has no loss. A row that is not finite is left out; where no other is left, and not by a single row, the model is
broken and the training stops. Every decision, with the scores it was made from, goes into detections.jsonl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.embedded import embedded_in
from bulwark.steering.schedules import Schedule
from bulwark.steering.screening.detections import DetectionLog, rows_of, summary_of
from bulwark.steering.screening.detectors import Detector, counts_of
from bulwark.steering.screening.policies import Policy, StateAware, Verdict, filler
from bulwark.steering.screening.split import select_rows
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FILE = "detections.jsonl"

_CURVES = {
    "Online_Proj_Mean": "p_cur",
    "Baseline_Proj_Mean": "p_ref",
    "Drift": "drift",
    "natural_loss": "loss_nat",
    "injected_loss": "loss_inj",
    "probe_cos_inj": "probe_cos",
    "probe_proj_inj": "probe_proj",
    "probe_grad_norm_inj": "probe_norm",
    "Alpha": "alpha",
}


class Screened(Objective):
    """Learns what `policy` keeps, by what it finds with the first of `vectors` at its layer.

    schedule: the injection's strength in each step; without an intervention (withdrawn), training is plain and nothing
    is recorded.
    """

    def __init__(self, course: Course, policy: Policy, *, vectors: FusedVectors, schedule: Schedule) -> None:
        self.course, self.policy, self.vectors, self.schedule = course, policy, vectors, schedule
        self.log = DetectionLog(course.job.folder / FILE)
        self.micro_batch = self.empty_steps = 0
        self.broken = 0  # rows that were not finite since the last step with something to learn
        self._unread: list[dict[str, Any]] = []

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        _refuse_dropout(engine.module)
        if isinstance(self.policy, StateAware) and embedded_in(engine) is not None:
            raise BulwarkError(
                "The checkpoint carries an embedded intervention, which shifts every row's projection in training and "
                "not that of the model's own answers, so that all rows would be flagged. Set ignore_embedded: true, or "
                "detect by delta_loss."
            )
        layer, vector = next(iter(self.vectors.at.items()))
        self.detector = Detector(engine, layer, vector)
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self.on, self.alpha, self.step = self.schedule.is_on(step), self.schedule.alpha_at(step), step
        self.rows: list[dict[str, Any]] = []
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=engine.device)  # tokens kept, rows not finite
        self.factor: float | None = None

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        """As the base does, but the loss is returned as a whole with the last micro-batch of the step."""
        if not self.on:
            return super().backward(engine, batch)
        verdict = self._judged(batch)
        learned = torch.where(verdict.kept, verdict.losses, 0.0)
        engines.backward(engine, learned.sum() / max(1, batch.step_tokens))
        self.loss_sum += learned.detach().double().sum()
        self.counts[0] += verdict.kept.sum()
        self.micro_batch += 1
        if not engine.is_gradient_accumulation_boundary():
            return torch.zeros_like(self.loss_sum)
        kept, broken = engines.over_ranks(self.counts).tolist()
        self.broken = 0 if kept else self.broken + broken
        if self.broken > 1:
            self._stop()
        self.factor = batch.step_tokens / kept if kept else 0.0
        return self.loss_sum / max(1, kept)

    def nothing_learned(self, batch: Batch) -> bool:
        """Also where everything was flagged; `factor` is the same on all ranks."""
        return self.factor == 0.0 or super().nothing_learned(batch)

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if self.factor:
            engines.scale_gradients(engine, self.factor)
        elif self.factor is not None:
            # Momentum and decay would go on moving the weights, and a step without a gradient would age the moments.
            self.empty_steps += 1
            engine.basic_optimizer.step = lambda *_, **__: None

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        vars(engine.basic_optimizer).pop("step", None)  # its own again
        if not self.on:
            return
        self.detector.split.traces.other()
        rows = [self.rows]
        if self.ranks > 1:
            rows = [[]] * self.ranks if self.rank == 0 else None
            torch.distributed.gather_object(self.rows, rows)
        if self.rank == 0:
            together = [row for part in rows for row in part]
            self.log.append(together)
            self._unread += together

    def metrics(self) -> dict[str, float]:
        """Of the rows since the last reading. Delta_Loss is the score that decides, as the authors name it."""
        rows, self._unread = self._unread, []
        if not rows:
            return {}
        summary = summary_of(rows)
        curves = _CURVES | {"Delta_Loss": self.policy.score}
        values = {name: summary["mean"][score] for name, score in curves.items()}
        values["Blocked_Samples_Ratio"] = summary["flagged_share"]
        values["Is_Malicious"] = float(summary["flagged"] > 0)
        values["Blocked_Tokens_Ratio"] = summary["blocked_tokens_share"]
        return {f"Defense/{name}": value for name, value in values.items() if value is not None}

    def report(self) -> dict[str, Any]:
        """The vectors, and the summary of all detections; on the main process, which alone has them."""
        if self.rank > 0:
            return {}
        summary = self.log.summary() | {"steps_without_rows": self.empty_steps}
        return {"steering": {"vectors": self.vectors.report, "detections": summary}}

    def state_dict(self) -> dict[str, Any]:
        counts = {"micro_batch": self.micro_batch, "empty_steps": self.empty_steps, "broken": self.broken}
        return counts | ({"log_bytes": self.log.saved()} if self.rank == 0 else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.micro_batch, self.empty_steps, self.broken = (
            state[name] for name in ("micro_batch", "empty_steps", "broken")
        )
        if self.rank == 0:
            self.log.resume(state["log_bytes"])

    def _judged(self, batch: Batch) -> Verdict:
        """The verdict, with rows left out that are not finite.

        A gradient of 0 through something infinite is not a number, so these rows may have no part in the graph. If any
        rank has one, all judge once more, so that they go through the model equally often.
        """
        while True:
            verdict = self.policy.judge(self.detector, batch, self.alpha)
            real = torch.tensor([bool(examples) for examples in batch.rows], device=verdict.broken.device)
            broken = verdict.broken & real
            self.counts[1] += (broken & (counts_of(batch) > 0)).sum()
            if not engines.over_ranks(broken.any().int(), largest=True):
                self._record(batch, verdict)
                return verdict
            if broken.any():
                self._record(batch, verdict, only=broken)
                left = (~broken).nonzero().squeeze(1)
                batch = select_rows(batch, left) if len(left) else filler(batch, self.course.pad_id)

    def _stop(self) -> None:
        """Raise BulwarkError, on all ranks alike: leaving out every row to the end would look like a training."""
        raise BulwarkError(
            f"Training stopped at step {self.step + 1}: {self.broken} rows, all that were left to learn from since the "
            "last step that had any, have a loss or a score that is not finite. So the weights or the strength are to "
            "blame, and not single rows. Look for NaN in the checkpoint that it starts from; else try a lower "
            f"learning_rate, or a lower alpha (here {self.alpha:g}).",
            diverged=True,
        )

    def _record(self, batch: Batch, verdict: Verdict, only: Tensor | None = None) -> None:
        rows = rows_of(
            batch,
            verdict.scores,
            self.course.records,
            step=self.micro_batch,
            opt_step=self.step,
            rank=self.rank,
            decision=verdict.decisions,
            weight=verdict.weight.tolist(),
        )
        if only is not None:
            chosen = {batch.rows[place][0] for place in only.nonzero().flatten().tolist()}
            rows = [row | {"weight": 0.0} for row in rows if row["row_id"] in chosen]
        self.rows += rows


def _refuse_dropout(model: nn.Module) -> None:
    """Raise ConfigurationError for a model that drops at random in training: no two of its passes can be compared."""
    rates = {name: part.p for name, part in model.named_modules() if isinstance(part, nn.Dropout) and part.p > 0}
    attention = getattr(model.config.get_text_config(), "attention_dropout", 0.0)  # no module of its own
    rates |= {"attention_dropout": attention} if attention else {}
    if rates:
        name, rate = next(iter(rates.items()))
        raise ConfigurationError(
            f"The model has dropout ({name}: {rate}), which differs between the passes with and without the vector, so "
            "that rows cannot be told by it. Set it to 0 in the base model's config.json."
        )
