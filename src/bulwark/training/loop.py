"""The one training loop: every step that trains calls `train`.

The model runs under a DeepSpeed engine (see `engine`), the batches are a pure function of seed and step (see
`batches`), what is optimised is an `Objective`, and `Observer`s watch. A run that is killed and started again with the
same arguments ends with the same weights, bit for bit on a CPU (see `state`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import logging
import math
import random
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bulwark import interrupts
from bulwark.errors import BulwarkError
from bulwark.training import engine as engines
from bulwark.training.batches import StepBatches, evaluation_batches, training_batches
from bulwark.training.checks.packing import check_packing
from bulwark.training.checks.remeasured import Judged, SampleLoss, learnable
from bulwark.training.lora import attach_lora
from bulwark.training.objectives import Objective
from bulwark.training.observers import Observer
from bulwark.training.progress import Progress, curve
from bulwark.training.saved.state import TrainingState
from bulwark.training.settings import MOST_SAVING, TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "schedulefree", "numpy")
_BYTES_OF_STATE = 12  # per parameter: fp32 master weight and AdamW's two moments
_SLOW_DISK = 1e8  # bytes per second and process, until a saving has been measured


@dataclass(frozen=True)
class TrainingReport:
    """What a manifest records of a training.

    loss: [step, mean training loss per token since the point before], at most 200 points; null where these steps had
    nothing to learn. validation: [step, loss].
    tokens: read, without padding; target_tokens: those learned. seconds and tokens_per_second: over all runs of a
    resumed training, without loading. spent: the steps, tokens, target_tokens and seconds at each snapshot.
    peak_memory_gb: of the GPU, or of the process.
    """

    steps: int
    epochs: float
    examples: int
    examples_without_targets: int
    tokens: int
    target_tokens: int
    loss: list[list[float | None]]
    validation: list[list[float]]
    best_step: int | None
    weights_of_step: int
    resumed_at: list[int]
    seconds: float
    tokens_per_second: float
    spent: list[dict[str, float]]
    peak_memory_gb: float
    parameters: int
    trainable_parameters: int
    processes: int
    threads: int
    device: str


@dataclass(frozen=True)
class Trained:
    """The finished model, whole on the main process only, which is the one to save it; adapters are merged.

    judged: by what the saved model can be compared with this one (see `checks.remeasured`).
    snapshots: on the main process, the models that were kept on the way, one at a time: (optimizer steps, model, what
    the observers had in mind then). To be taken when the finished model is saved: each takes the place of the last.
    """

    model: nn.Module
    report: TrainingReport
    main_process: bool
    judged: Judged
    snapshots: Iterator[tuple[int, nn.Module, list[dict[str, Any]]]]


@dataclass
class _Position:
    """How far the training is; kept with the state."""

    step: int = 0
    losses: list[float | None] = field(default_factory=list)  # None: nothing was to learn
    validation: list[list[float]] = field(default_factory=list)
    samples: list[list[Any]] = field(
        default_factory=list
    )  # [step, the main process's first losses], see checks.remeasured
    best_step: int | None = None
    best_loss: float = math.inf
    tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    spent: list[dict[str, float]] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)


def train(
    model: nn.Module,
    examples: Sequence[Prompt],
    validation: Sequence[Prompt],
    settings: TrainingSettings,
    *,
    seed: int,
    state: Path,
    fingerprint: dict[str, Any],
    pad_id: int,
    objective: Objective | None = None,
    observers: Sequence[Observer] = (),
) -> Trained:
    """Train `model` on `examples` and return it with a report.

    state: folder for the state of an unfinished training; the caller removes it when the result is safe. TensorBoard's
        events go to tensorboard/ beside it.
    fingerprint: plain data that identifies the training besides settings, seed and examples, which are added here;
        state with another one is set aside.
    objective: what to optimise; next-token prediction if left out. observers: what else is called around every step,
        after the objective, in this order.

    Told to end, it saves after the present step and ends the process (see `bulwark.interrupts`).
    Raises BulwarkError for an empty data set, a batch size that does not divide, a model that cannot be trained packed
    when that is asked for, and a loss that is not finite.
    """
    processes = engines.start_processes()
    _seed_everything(seed)
    if settings.lora is not None:
        model = attach_lora(model, settings.lora)
    flatten = "flash" in str(getattr(model.config, "_attn_implementation", ""))
    layout = {"pad_id": pad_id, "rank": processes.rank, "ranks": processes.count, "flatten": flatten}
    batches = training_batches(examples, settings, seed=seed, **layout)
    validating = evaluation_batches(validation, settings, **layout) if validation else None
    judging = validating or evaluation_batches(learnable(examples), settings, **layout)
    if settings.keep_best and validating is None:
        raise BulwarkError("keep_best needs validation examples, and there are none.")
    total = settings.total_steps(len(examples))
    objective = objective or Objective()
    batches = objective.batches_from(batches)
    parts: list[Observer] = [objective, *observers]
    sizes = {"parameters": _size(model), "trainable_parameters": _size(model, trainable=True)}
    engine = engines.build(model, settings, total)
    if settings.packing:
        check_packing(engine, model.get_input_embeddings().num_embeddings)
    _seed_everything(seed + processes.rank)
    identity = {
        "caller": fingerprint,
        "settings": settings.deciding(),
        "seed": seed,
        "parts": [f"{type(part).__module__}.{type(part).__qualname__}" for part in parts],
        "examples": [_digest(part) for part in (examples, validation)],
        "processes": processes.count,
        "device": processes.device.type,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    if settings.snapshots and settings.snapshots[-1] > total:
        raise BulwarkError(f"snapshots names step {settings.snapshots[-1]}, but the training has only {total} steps.")
    keeper = TrainingState(state, identity, processes, settings.lora is not None, settings.snapshots)
    with contextlib.closing(keeper), interrupts.resumable(None):
        for part in parts:
            part.start(engine, total)
        saved = keeper.load(engine, parts)
        position = _Position(**saved) if saved else _Position()
        if saved:
            position.resumed_at.append(position.step)
        events = Path(state).parent / "tensorboard"
        name = "/".join(Path(state).resolve().parent.parts[-3:])  # model, recipe and seed, where the workflow trains
        with Progress(name, position.step, total, visible=processes.main, events=events) as progress:
            run = _Run(engine, objective, observers, settings, processes, keeper, position, progress, total, name)
            run.first_saving = _BYTES_OF_STATE * sizes["trainable_parameters"] / processes.count / _SLOW_DISK
            run.train(batches, validating)
            if validating is None:
                run.measure(judging)
        interrupts.see_through()
        chosen = position.best_step if settings.keep_best else position.step
        model = engines.release(engine)
        if processes.main:
            if chosen != position.step:
                log.info("Taking the weights of step %d, whose evaluation loss was the lowest.", chosen)
                model.load_state_dict(keeper.best_weights(chosen), strict=False)
            adapted = copy.deepcopy(model) if settings.lora is not None and settings.snapshots else None
            if settings.lora is not None:
                model = model.merge_and_unload()
            for part in parts:
                part.finish(model, chosen, total)
    snapshots = _snapshots(keeper, settings.snapshots, model, adapted) if processes.main else iter(())
    judged = Judged(judging, dict(position.samples)[chosen], objective, sizes["parameters"])
    return Trained(model, _report(position, chosen, batches, processes, sizes), processes.main, judged, snapshots)


def _snapshots(
    keeper: TrainingState, steps: Sequence[int], model: nn.Module, adapted: nn.Module | None
) -> Iterator[tuple[int, nn.Module, list[dict[str, Any]]]]:
    """The kept models, in turn. adapted: the model with its adapters beside it, where there were any."""
    for step in steps:
        weights, observed = keeper.snapshot(step)
        whole = model if adapted is None else copy.deepcopy(adapted)
        whole.load_state_dict(weights, strict=False)
        yield step, whole if adapted is None else whole.merge_and_unload(), observed


@dataclass
class _Run:
    """The loop, with what it works on and how far it is."""

    engine: DeepSpeedEngine
    objective: Objective
    observers: Sequence[Observer]
    settings: TrainingSettings
    processes: engines.Processes
    keeper: TrainingState
    position: _Position
    progress: Progress
    total: int
    name: str
    # Losses and gradient norms stay on the device until they are read: each reading waits for a GPU.
    unread: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)  # and whether nothing was learned
    started: float = field(default_factory=lambda: time.monotonic())
    saved_at: float = field(default_factory=lambda: time.monotonic())
    saving: float = 0.0  # seconds since the start
    first_saving: float = 0.0  # seconds that the first one may take

    @property
    def parts(self) -> list[Observer]:
        return [self.objective, *self.observers]

    def train(self, batches: StepBatches, validating: StepBatches | None) -> None:
        position, settings = self.position, self.settings
        read_every = 1 if self.processes.device.type == "cpu" else settings.log_every
        every = batches.steps_per_epoch if settings.evaluate_every == "epoch" else settings.evaluate_every
        lap = time.monotonic()
        for step in range(position.step, self.total):
            self._optimizer_step(step, batches)
            done = position.step = step + 1
            position.tokens += batches.tokens_of(step)
            evaluate = validating is not None and (done == self.total or (every and done % every == 0))
            save, leave = self._decisions(done)
            if evaluate or save or done == self.total or done % read_every == 0:
                self._read_losses()
            self.progress.advance(done, batches.tokens_of(step))
            if evaluate:
                self._evaluate(validating)
            position.seconds += time.monotonic() - lap
            if done in settings.snapshots:
                tokens = {"tokens": position.tokens, "target_tokens": position.target_tokens}
                position.spent.append({"steps": done, **tokens, "seconds": round(position.seconds, 2)})
                self.keeper.keep_snapshot(self.engine, done, [part.snapshot() for part in self.parts])
            if save:
                self.keeper.save(self.engine, self.parts, vars(position))
                self.saved_at = time.monotonic()
                self.saving += self.keeper.seconds
            if leave:
                self._leave()
            lap = time.monotonic()

    def _optimizer_step(self, step: int, batches: StepBatches) -> None:
        engine, objective, device = self.engine, self.objective, self.processes.device
        for part in self.parts:
            part.before_step(engine, step, self.total)
        micro_batches = list(batches.of_step(step))
        loss = torch.zeros((), device=device)
        for number, batch in enumerate(micro_batches, start=1):
            engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            batch = batch.to(device)
            with contextlib.ExitStack() as stack:
                for observer in self.observers:
                    stack.enter_context(observer.during(batch))
                loss += objective.backward(engine, batch)
        objective.after_backward(engine, step, self.total)
        norm = engines.step(engine, self.settings.max_grad_norm)
        for part in self.parts:
            part.after_step(engine, step, self.total)
        norm = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32, device=device)
        self.unread.append((loss.float(), norm, objective.nothing_learned(batch)))
        self.position.target_tokens += micro_batches[0].step_tokens

    def _read_losses(self) -> None:
        """Add up the losses of the steps since the last reading over all ranks; stop if one is not finite."""
        if not self.unread:
            return
        losses, norms, empty = zip(*self.unread, strict=True)
        losses = engines.over_ranks(torch.stack(losses)).tolist()
        norms = engines.over_ranks(torch.stack(norms), largest=True).tolist()
        first = len(self.position.losses) + 1
        rate = self.engine.get_lr()[0]
        extra = self.objective.metrics() if self.processes.main else {}
        for step, (loss, norm, without) in enumerate(zip(losses, norms, empty, strict=True), start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._stop(step, loss, norm)
            self.position.losses.append(None if without and loss == 0 else loss)
            values = {"loss/train": self.position.losses[-1], "gradient_norm": norm, "learning_rate": rate}
            self.progress.record(step, values | extra)
        self.unread.clear()

    def _stop(self, step: int, loss: float, norm: float) -> None:
        good = self.keeper.latest()
        where = f"The last good state is {good}" if good else "No state had been saved before"
        raise BulwarkError(
            f"Training stopped at step {step} of {self.total}: the loss is {loss}, the gradient norm {norm}. "
            f"{where}. Try a lower learning_rate, more warm-up, a smaller max_grad_norm, or precision float32.",
            diverged=True,
        )

    def _evaluate(self, validating: StepBatches) -> None:
        """Take the mean loss per token over the validation examples; keep the weights if it is the lowest."""
        position = self.position
        with engines.evaluation_weights(self.engine):
            loss = self._measured(validating)
            if not math.isfinite(loss):
                self._stop(position.step, loss, math.nan)
            position.validation.append([position.step, loss])
            better = loss < position.best_loss
            if better:
                position.best_step, position.best_loss = position.step, loss
            if better and self.settings.keep_best and position.step < self.total:
                self.keeper.keep_best(self.engine, position.step)
        self.progress.record(position.step, {"loss/validation": loss})
        if self.processes.main:
            log.info("Step %d: evaluation loss %.4f%s.", position.step, loss, ", the lowest so far" if better else "")

    def measure(self, batches: StepBatches) -> None:
        """Take note of the loss on `batches` where there is no validation."""
        with engines.evaluation_weights(self.engine):
            self._measured(batches)

    @torch.no_grad()
    def _measured(self, batches: StepBatches) -> float:
        """The mean loss per token over all ranks; that of the first examples is noted."""
        device, sample = self.processes.device, SampleLoss()
        total = torch.zeros((), device=device, dtype=torch.float64)
        for batch in batches.of_step(0):
            share = self.objective.validation_loss(self.engine, batch.to(device)).double()
            total += share
            sample.add(batch, share)
        self.position.samples.append([self.position.step, sample.losses()])
        return float(engines.over_ranks(total))

    def _decisions(self, done: int) -> tuple[bool, bool]:
        """Whether to save after this step, and whether to end then, on all ranks alike."""
        if done == self.total:
            return False, False
        save = bool(self.settings.save_every) and done % self.settings.save_every == 0
        decisions = [self.processes.main and self._clock_says_save(), interrupts.told()]
        if self.processes.count > 1:  # the main process's clock decides for all, and any may have been told to end
            told = torch.tensor(decisions, dtype=torch.int32, device=self.processes.device)
            decisions = [bool(value) for value in engines.over_ranks(told, largest=True).tolist()]
        by_clock, leave = decisions
        return save or by_clock or leave, leave

    def _clock_says_save(self) -> bool:
        """Whether it is time by save_minutes, and one more saving as long as the last leaves enough for training."""
        if self.settings.save_minutes is None:
            return False
        now = time.monotonic()
        cost = self.saving + (self.keeper.seconds or self.first_saving)
        return now - self.saved_at > 60 * self.settings.save_minutes and cost <= MOST_SAVING * (now - self.started)

    def _leave(self) -> None:
        """End this process; the state has just been saved, or could not be."""
        text = f"{self.name}: saved at step {self.position.step} of {self.total}"
        if self.keeper.failure:
            left = self.keeper.latest()
            text = f"{self.name}: step {self.position.step} of {self.total} could not be saved, " + (
                f"but step {int(left.name.removeprefix('step-'))} was" if left else "nothing was saved before"
            )
        interrupts.leave(text if self.processes.main else None)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _report(
    position: _Position, chosen: int, batches: StepBatches, processes: engines.Processes, sizes: dict[str, int]
) -> TrainingReport:
    return TrainingReport(
        steps=position.step,
        epochs=round(position.step / batches.steps_per_epoch, 4),
        examples=len(batches.targets),
        examples_without_targets=int((batches.targets == 0).sum()),
        tokens=position.tokens,
        target_tokens=position.target_tokens,
        loss=curve(position.losses),
        validation=position.validation,
        best_step=position.best_step,
        weights_of_step=chosen,
        resumed_at=position.resumed_at,
        seconds=round(position.seconds, 2),
        tokens_per_second=round(position.tokens / max(position.seconds, 1e-9), 1),
        spent=position.spent,
        peak_memory_gb=round(_peak_memory(processes.device) / 2**30, 3),
        processes=processes.count,
        threads=torch.get_num_threads(),
        device=processes.device.type,
        **sizes,
    )


def _digest(examples: Sequence[Prompt]) -> str:
    """A digest of ids and labels."""
    total = hashlib.sha256()
    for example in examples:
        for part in (example.ids, example.labels or []):
            total.update(np.array(part, dtype=np.int64).tobytes() + b";")
    return total.hexdigest()


def _size(model: nn.Module, trainable: bool = False) -> int:
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in model.parameters()
        if parameter.requires_grad or not trainable
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
