"""Intervention delta continuation (Guan et al., arXiv 2609.10142, Sec. 4.2): go on with what steering has taught.

Up to the boundary K the trait vector v is injected. The displacement ΔW of an output projection is what the model has
learned under it; what ΔW adds to the residual stream for its usual input is a vector u per module. From K on, α·u is
added to the output of each module in place of v. The authors' ranks take u each from their own calibration data; here
sums and counts are reduced over the ranks and everyone injects the same u.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import site_module
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.preservation.boundary import SteeredUntil
from bulwark.steering.preservation.settings import ContinuationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training import engine as engines
from bulwark.training.batches import Batch, training_batches
from bulwark.training.displacement import (
    Displacement,
    Side,
    added_up,
    become_differences,
    main_subspaces,
    norms_of,
    same_everywhere,
)
from bulwark.training.finetuning import Course
from bulwark.training.objectives import next_token_loss
from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

_OVERSAMPLE, _ITERATIONS = 8, 30  # a module or two per layer, so exactness costs nothing

Module = tuple[int, Literal["o_proj", "down_proj"]]
"""A layer key and the name of an output projection there."""


def continued(
    raw: Mapping[str, Tensor], v: Tensor, sign: str = "aligned", scale: str = "preserve_ratio"
) -> dict[str, Tensor]:
    """The vectors u [hidden] that are injected at the modules of one layer, in place of v [hidden].

    raw: what each module has learned, [hidden] each. See `ContinuationSettings` for sign and scale.
    """
    side = -1.0 if sign == "opposite" else 1.0
    turned = {name: vector * (-side if float(vector @ v) < 0 else side) for name, vector in raw.items()}
    if scale == "raw":
        return turned
    norms = {name: vector.norm() for name, vector in turned.items()}
    if scale == "equal_share":
        return {name: vector * (v.norm() / len(turned) / norms[name]) for name, vector in turned.items()}
    return {name: vector * (v.norm() / sum(norms.values())) for name, vector in turned.items()}


class Continuation(SteeredUntil):
    """Static steering with v up to the boundary, then with a vector u per output projection of the same layers.

    Raises BulwarkError at the boundary if a module has not moved, or if an epoch has too few tokens to calibrate on.
    """

    def __init__(
        self,
        course: Course,
        vectors: FusedVectors,
        intervention: InterventionSettings,
        settings: ContinuationSettings,
        training: TrainingSettings,
    ) -> None:
        super().__init__(course, vectors, intervention, settings)
        self.settings, self.training = settings, training
        self.modules: list[Module] = [(layer, name) for layer in sorted(vectors.at) for name in settings.modules]
        self.at: dict[Module, Tensor] = {}
        self._record: dict[str, Any] = {}

    def watched(self, model: nn.Module) -> list[tuple[nn.Parameter, Side]]:
        return [(site_module(model, layer, name).weight, "output") for layer, name in self.modules]

    def second_phase(self, batch: Batch) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for steering in self._continuing:
            stack.enter_context(self.steered(steering, batch))
        return stack

    def cross(self, engine: DeepSpeedEngine, snapshots: list[Displacement]) -> None:
        settings, device = self.settings, engine.device
        become_differences(engine, snapshots)
        norms = norms_of(snapshots, device)
        still = [moved.name for moved, norm in zip(snapshots, norms, strict=True) if not norm > settings.min_delta_norm]
        if still:
            raise BulwarkError(
                f"{', '.join(still)}: not moved after {self.boundary} steps (‖ΔW‖ up to {settings.min_delta_norm:g}), "
                "so there is nothing to continue. Set the boundary later."
            )
        if settings.source == "functional_mean":
            means, calibration = self._mean_inputs(engine)
            shares = [
                moved.piece(device).times(mean[:, None])[:, 0] for moved, mean in zip(snapshots, means, strict=True)
            ]
            raw = added_up(shares, snapshots[0].replicated, device)
            record = {"calibration": calibration}
        else:
            raw, captured = self._main_vectors(snapshots, norms, device)
            record = {"captured_energy": captured}
        self._take(same_everywhere(raw, device), record)
        self._install()

    def metrics(self) -> dict[str, float]:
        rows = self._record.get("modules", {})
        return {f"continuation/{module}/{key}": row[key] for module, row in rows.items() for key in ("cos_v", "norm")}

    def report(self) -> dict[str, Any]:
        return {"steering": self.steering_record() | self._record}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"at": self.at, "told": self._record}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.at, self._record = state["at"], state["told"]
        if self.crossed:
            self._install()

    def _install(self) -> None:
        """Prepare an intervention per name of module, which acts at all layers."""
        self._continuing = [
            Intervention(
                self._model,
                {layer: u.to(self._engine_device) for (layer, other), u in self.at.items() if other == name},
                site=name,
                adaptive=self.intervention.adaptive,
            )
            for name in self.settings.modules
        ]

    def _take(self, raw: list[Tensor], record: dict[str, Any]) -> None:
        """Keep the vectors that are injected, and what the manifest records of them."""
        settings, rows = self.settings, {}
        for layer, v in self.vectors.at.items():
            v = v.to(self._engine_device)
            here = {name: vector for (at, name), vector in zip(self.modules, raw, strict=True) if at == layer}
            if short := [name for name, vector in here.items() if not float(vector.norm()) > settings.min_delta_norm]:
                raise BulwarkError(
                    f"layer {layer}: what {', '.join(short)} has learned adds nothing to the residual stream "
                    f"(‖u‖ up to {settings.min_delta_norm:g}). Set the boundary later, or leave the module out."
                )
            for name, u in continued(here, v, settings.sign, settings.scale).items():
                self.at[layer, name] = u
                rows[f"layer{layer}.{name}"] = {
                    "cos_v": float(torch.cosine_similarity(u, v, dim=0)),
                    "norm": float(u.norm()),
                    "raw_cos_v": float(torch.cosine_similarity(here[name], v, dim=0)),
                    "raw_norm": float(here[name].norm()),
                }
        self._record = record | {"modules": rows}
        log.info(
            "Step %d: steering goes on with %s.",
            self.boundary,
            "; ".join(f"{name}: ‖u‖ {row['norm']:.3g}, cos(u, v) {row['cos_v']:.2f}" for name, row in rows.items()),
        )

    def _main_vectors(
        self, snapshots: list[Displacement], norms: list[float], device: torch.device
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Σ σ_i u_i over the main left singular vectors of each ΔW, turned to v's side; what share of ‖ΔW‖² that is."""
        subspaces = main_subspaces(
            snapshots, device, rank=self.settings.rank, oversample=_OVERSAMPLE, power_iterations=_ITERATIONS
        )
        raw, captured = [], {}
        for (layer, name), norm, (basis, coordinates) in zip(self.modules, norms, subspaces, strict=True):
            strengths = coordinates.norm(dim=0)
            along = basis.T @ self.vectors.at[layer].to(device)
            raw.append(basis @ torch.where(along < 0, -strengths, strengths))
            captured[f"layer{layer}.{name}"] = float(strengths.square().sum()) / norm**2
        return raw, captured

    def _mean_inputs(self, engine: DeepSpeedEngine) -> tuple[list[Tensor], dict[str, int]]:
        """The mean input [in] of each module over the steered tokens of the next optimizer steps, without steering.

        The batches are a function of seed and step, so reading them now takes nothing from the training.
        """
        course, settings = self.course, self.settings
        batches = training_batches(
            course.examples,
            self.training,
            seed=course.job.seed,
            pad_id=course.pad_id,
            rank=torch.distributed.get_rank(),
            ranks=torch.distributed.get_world_size(),
            flatten="flash" in str(getattr(self._model.config, "_attn_implementation", "")),
        )
        parts = [site_module(self._model, layer, name) for layer, name in self.modules]
        sums = [torch.zeros(part.in_features, device=engine.device) for part in parts]
        steps = tokens = 0

        def add(number: int, inputs: Tensor) -> None:
            sums[number].add_((inputs.float() * mask.unsqueeze(-1)).sum(dim=(0, 1)))

        with engines.evaluation_weights(engine):
            while steps < settings.calibration_steps or tokens < settings.calibration_tokens:
                if steps == batches.steps_per_epoch:
                    raise BulwarkError(
                        f"An epoch has {steps} steps with {tokens} steered tokens, but calibration_steps is "
                        f"{settings.calibration_steps} and calibration_tokens {settings.calibration_tokens}. Lower it."
                    )
                read = torch.zeros((), device=engine.device)
                for batch in batches.of_step(self.boundary + steps):
                    batch = batch.to(engine.device)
                    mask = token_mask(batch, self.intervention.tokens)
                    with hooks.capture_inputs(dict(enumerate(parts)), add):
                        next_token_loss(engine, batch)
                    read += mask.sum()
                steps += 1
                tokens += int(added_up([read], False, engine.device)[0])
        means = [total / tokens for total in added_up(sums, False, engine.device)]
        return means, {"steps": steps, "tokens": tokens}
