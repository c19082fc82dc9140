"""Training under an intervention: preventative steering, static or scheduled, and concept ablation (CAFT).

Persona vectors (Chen et al., arXiv 2507.21509, Sec. 5) add c·v to the residual stream while fine-tuning, so that the
training need not move the weights along v; Guan et al. (arXiv 2609.10142) let the strength rise from an onset on (PIS,
eq. 3 and 4); CAFT takes the component along v away instead. `Steering` is the objective of all of them.

Another objective on trait vectors needs `begin` for the vectors, `schedule_of` for the strength in each optimizer step
and, if it records them, `PooledGradient` for the cosines of gradients.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.errors import ConfigurationError
from bulwark.models import hooks, manifests
from bulwark.models.anatomy import blocks_of
from bulwark.steering.embedded import EmbeddedIntervention
from bulwark.steering.intervention import Ablation, Intervention, token_mask
from bulwark.steering.schedules import DetectedOnset, Schedule, ScheduleSettings, Strength, detect_onset
from bulwark.steering.settings import InterventionSettings, VectorSettings
from bulwark.steering.vectors.fusion import FusedVectors, load_fused
from bulwark.training import engine as engines
from bulwark.training.batches import IGNORED, Batch
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)


def begin(course: Course, settings: VectorSettings, increments: bool = False) -> FusedVectors:
    """The vectors that a step asked for (`settings.inputs()`), fused, for the model that is to be trained.

    increments: for several layers, each gets v_l - v_k with k the next lower of them (the lowest gets v_l), so that
    what has been added up to layer l is v_l (as persona vectors steer at several layers).
    Raises ConfigurationError for layer keys outside 1 … N-1 and vectors of another model or checkpoint.
    """
    vectors = load_fused(
        settings,
        {trait: Path(course.job.inputs[f"vector_{trait}"]) for trait in settings.traits},
        course.model,
        files.digest(manifests.manifest_path(course.job.parent)),
    )
    if not increments:
        return vectors
    lower = torch.zeros_like(vectors.at[settings.layer])
    at = {}
    for layer in sorted(vectors.at):
        at[layer], lower = vectors.at[layer] - lower, vectors.at[layer]
    norms = {str(layer): float(vector.norm()) for layer, vector in at.items()}
    return FusedVectors(at, {**vectors.report, "increment_norms": norms})


def schedule_of(settings: ScheduleSettings, alpha: float, course: Course) -> Schedule:
    """The schedule over the whole course, on the strength `alpha`; an onset is detected where that is asked for.

    Raises ConfigurationError if the other training recorded no cosines or has another number of steps, or the onset
    lies behind the end.
    """
    return _scheduled(settings, alpha, course)[0]


@dataclass(eq=False)
class Steering(Objective):
    """Next-token training under an intervention, with a record of how the gradient aligns with the vector.

    schedule: the strength in each optimizer step; for CAFT, which has none, whether it acts.
    ablate: CAFT, h' = h - m·(h·v̂)v̂, in place of h' = h + s·m·v. embedded: the intervention is the model's own (see
        `bulwark.steering.embedded`), and this objective only records. further: what the manifest records besides.
    Evaluation losses are those of the model without any intervention, as it answers later.
    """

    vectors: FusedVectors
    settings: InterventionSettings
    schedule: Schedule
    _: KW_ONLY
    ablate: bool = False
    embedded: bool = False
    further: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._step = 0
        self._hidden_norm: float | None = None
        self._acting: Intervention | Ablation | None = None

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        at = {layer: vector.to(engine.device) for layer, vector in self.vectors.at.items()}
        layer = next(iter(at))
        self._gradient = PooledGradient(engine, layer, at[layer])
        if self.ablate:
            self._acting = Ablation(engine, at, site=self.settings.site)
        elif not self.embedded:
            self._acting = Intervention(engine, at, site=self.settings.site, adaptive=self.settings.adaptive)

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self._step = step

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        measuring = self._gradient.norms() if self._step == 0 else contextlib.nullcontext()
        acting = contextlib.nullcontext()
        if self._acting is not None and self.schedule.is_on(self._step):
            strength = () if self.ablate else (self.schedule.alpha_at(self._step),)
            acting = self._acting.on(token_mask(batch, self.settings.tokens), *strength)
        with measuring, acting, self._gradient.of(batch):
            return super().backward(engine, batch)

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self._gradient.finish_step()
        if step == 0:
            self._hidden_norm = self._gradient.mean_hidden_norm()

    def phase(self, step: int) -> str:
        """ "injection" while there is an intervention, "after" when it has been withdrawn."""
        return "injection" if self.schedule.is_on(step) else "after"

    def metrics(self) -> dict[str, float]:
        latest = {"steering/gradient_cosine": self._gradient.cosines()[-1]}
        if not (self.ablate or self.embedded):
            latest["steering/alpha"] = self.schedule.alpha_at(self._step)
        return {name: value for name, value in latest.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        return {"cosines": self._gradient.cosines(), "hidden_norm": self._hidden_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gradient.known = state["cosines"]
        self._hidden_norm = state["hidden_norm"]

    def report(self) -> dict[str, Any]:
        """alpha_norm: ‖s·v‖ at the recorded layer, alpha·‖v‖ or, adaptive, alpha·mean ‖h‖ of the first step.
        relative_norm: that over mean ‖h‖ there in the first step."""
        cosines = self._gradient.cosines()
        hidden = self._hidden_norm
        norm = hidden if self.settings.adaptive else float(self.vectors.at[self._gradient.layer].norm())
        strength = {
            "schedule": {**vars(self.schedule), "mean_alpha": self.schedule.mean_alpha()},
            "alpha_norm": self.schedule.alpha * norm if norm is not None else None,
            "relative_norm": self.schedule.alpha * norm / hidden if hidden else None,
        }
        described = {
            "vectors": self.vectors.report,
            "intervention": self.settings.model_dump(mode="json"),
            "hidden_norm": hidden,
            **({"ablation": True, "steered": self.schedule.steered} if self.ablate else strength),
            "gradient_layer": self._gradient.layer,
            "gradient_cosine": cosines,
            "steps_without_gradient": sum(cosine is None for cosine in cosines),
        }
        return {"steering": described | self.further}


def steering(
    course: Course,
    vectors: FusedVectors,
    settings: InterventionSettings,
    schedule: ScheduleSettings,
    *,
    embedded: bool = False,
) -> Steering:
    """The objective of a steered training.

    embedded: the vectors become part of the model, which takes them into later trainings. The schedule over optimizer
    steps becomes one over response tokens, the same up to the steps' unequal numbers of tokens.
    """
    over, further = _scheduled(schedule, settings.alpha, course)
    if embedded:
        targets = sum(sum(label != IGNORED for label in example.labels[1:]) for example in course.examples)
        per_step = targets / course.steps_per_epoch
        names = {id(module): name for name, module in course.model.named_modules()}
        blocks = blocks_of(course.model)
        EmbeddedIntervention(
            at={names[id(blocks[layer - 1])]: vector for layer, vector in vectors.at.items()},
            # A step is steered with what the schedule says of its end, and begins with the tokens of those before it.
            strength=Strength(over.alpha, over.end, (over.onset - 1) * per_step, (over.horizon - 1) * per_step),
            origin={"vectors": vectors.report},
        ).install(course.model)
    return Steering(vectors, settings, over, embedded=embedded, further=further)


class PooledGradient:
    """cos(ḡ, v) per optimizer step; ḡ is the loss's gradient at h_layer, summed over the step's supervised tokens.

    It is that at the block's output as the blocks above see it, so after an intervention there, and the same
    for any number of micro-batches and ranks. Costs one pass over the gradient of h and one all-reduce of [hidden].
    """

    def __init__(self, engine: nn.Module, layer: int, vector: Tensor) -> None:
        self.layer = layer
        self._block = blocks_of(engine)[layer - 1]
        self._vector = vector.float()
        self._sum = torch.zeros_like(self._vector)
        self._norms = torch.zeros(2, device=vector.device)
        self._mask: Tensor | None = None
        self._waiting: list[Tensor] = []  # cosines of which nobody has asked the device yet
        self.known: list[float | None] = []

    @contextlib.contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Within it, forward and backward passes through the model add to the step's gradient. Enter it last."""
        self._mask = (batch.labels != IGNORED).float()

        def add(gradient: Tensor) -> None:
            self._sum += torch.einsum("bsh,bs->h", gradient.float(), self._mask)

        def watch(_: int, hidden: Tensor) -> None:
            if hidden.requires_grad:
                hidden.register_hook(add)

        with hooks.capture({self.layer: self._block}, watch):
            yield

    @contextlib.contextmanager
    def norms(self) -> Iterator[None]:
        """Within it, ‖h‖ of the supervised tokens is added up. Enter it first: h is then as the block puts it out."""

        def watch(_: int, hidden: Tensor) -> None:
            norms = hidden.detach().float().norm(dim=-1) * self._mask
            self._norms += torch.stack([norms.sum(), self._mask.sum()])

        with hooks.capture({self.layer: self._block}, watch):
            yield

    def finish_step(self) -> None:
        """The step's micro-batches are through; all ranks call it."""
        engines.over_ranks(self._sum)
        cosine = torch.nn.functional.cosine_similarity(self._sum, self._vector, dim=0, eps=1e-30)
        self._waiting.append(torch.where(self._sum.any(), cosine, torch.nan))
        self._sum = torch.zeros_like(self._sum)

    def mean_hidden_norm(self) -> float | None:
        """The mean ‖h‖ of what `norms` saw, over all ranks, which all call it; None if there was nothing."""
        total, count = engines.over_ranks(self._norms).tolist()
        return total / count if count else None

    def cosines(self) -> list[float | None]:
        """One value per step; None where the gradient was 0."""
        if self._waiting:
            values = torch.stack(self._waiting).tolist()
            self.known = [*self.known, *(None if math.isnan(value) else value for value in values)]
            self._waiting = []
        return self.known


def _scheduled(settings: ScheduleSettings, alpha: float, course: Course) -> tuple[Schedule, dict[str, Any]]:
    """The schedule over the whole course, and what the manifest records of an onset that was detected for it."""
    if not isinstance(settings.onset, DetectedOnset):
        return settings.over(course.total_steps, alpha), {}
    name, path = settings.onset.detected_from, course.job.inputs["onset_from"]
    cosines = manifests.read_manifest(path, verify=False).get("steering", {}).get("gradient_cosine")
    if cosines is None:
        raise ConfigurationError(
            f'schedule.onset.detected_from: the step "{name}" recorded no cosines of its gradients ({path}). Name one '
            "that steers at constant strength, such as steer."
        )
    if len(cosines) != course.total_steps:
        raise ConfigurationError(
            f'schedule.onset.detected_from: the step "{name}" has {len(cosines)} optimizer steps ({path}), this '
            f"training {course.total_steps}: an onset found there means nothing here. Give both the same data and "
            "training."
        )
    onset = detect_onset(cosines)
    if not onset.found:
        log.warning("No onset was found in %s; taking its middle, step %d.", path, onset.step)
    record = {"detected_onset": {**vars(onset), "band": list(onset.band)}}
    return settings.over(course.total_steps, alpha, onset.step), record
