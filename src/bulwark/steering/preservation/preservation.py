"""Intervention delta preservation (Guan et al., arXiv 2609.10142, Sec. 4.1): training may not undo what steering did.

Up to the boundary K the model is steered. From then on, without steering, nothing may move the weights along the main
directions B of their displacement ΔW:

    update (ours)            W ← W - B(BᵀW - BᵀW_before)      after each optimizer step
    gradient (as published)  G ← G - B(BᵀG)                   before clipping and AdamW

and the same from the right for matrices that read from the residual stream. The first holds exactly whatever the
optimizer does; the second does not, because AdamW's moments, its preconditioner and weight decay leave the subspace
again. Only the coordinates BᵀW [r, columns] are remembered for it, never a copy of the weights.

"retained" is the share of ΔW, along the protected directions, that is still there, ⟨P(W_t - W_0), ΔW⟩ / ‖PΔW‖²;
"drift" how far the weights have moved along these directions since the boundary, whatever their sense,
‖P(W_t - W_K)‖ / ‖PΔW‖.
"""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models.anatomy import blocks_of
from bulwark.steering.preservation.boundary import SteeredUntil
from bulwark.steering.preservation.settings import PreservationSettings
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.training import engine as engines
from bulwark.training import shards
from bulwark.training.batches import Batch
from bulwark.training.displacement import (
    Displacement,
    Piece,
    Side,
    added_up,
    become_differences,
    main_subspaces,
    norms_of,
)
from bulwark.training.finetuning import Course
from bulwark.training.shards import Shard

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

ROWS = "preservation.jsonl"
_WRITERS = {"o_proj", "out_proj", "wo", "dense", "down_proj", "dense_4h_to_h", "c_proj", "w2", "fc2"}


def protected_weights(
    model: nn.Module,
    scope: str = "target_core",
    layers: tuple[int, ...] | str = "all",
    allow_partial: bool = False,
) -> list[tuple[nn.Parameter, Side]]:
    """The trainable matrices of the decoder blocks that are to be preserved, with the side of their directions.

    scope "target_core": those that write into the residual stream ("output" side); "all_linear": also those that read
    from it ("input" side). layers: blocks from 1. allow_partial: go on where a block has experts in one tensor, which
    are no matrices. Raises ConfigurationError for blocks that are not there, BulwarkError for such experts otherwise,
    and if nothing is found.
    """
    blocks = blocks_of(model)
    chosen = range(1, len(blocks) + 1) if layers == "all" else sorted(set(layers))
    if wrong := [layer for layer in chosen if not 1 <= layer <= len(blocks)]:
        raise ConfigurationError(f"preservation.layers: {wrong} are no blocks of a model with {len(blocks)} (from 1).")
    weights: list[tuple[nn.Parameter, Side]] = []
    seen: list[str] = []
    for layer in chosen:
        fused = [n for n, p in blocks[layer - 1].named_parameters() if p.requires_grad and len(shards.shape_of(p)) > 2]
        if fused and not allow_partial:
            raise BulwarkError(
                f"Block {layer} has experts in one tensor ({fused[0]}), which are not preserved. Set preservation."
                "allow_partial: true to preserve the other matrices only."
            )
        for name, part in blocks[layer - 1].named_modules():
            if isinstance(part, nn.Linear):
                seen.append(name)
                writes = name.rpartition(".")[2] in _WRITERS
                if part.weight.requires_grad and (writes or scope == "all_linear"):
                    weights.append((part.weight, "output" if writes else "input"))
    if not weights:
        raise BulwarkError(
            f"There is nothing to preserve: of the blocks' linear modules {sorted(set(seen)) or '(none)'}, none is "
            f"trained and of the scope {scope}, whose names are {', '.join(sorted(_WRITERS))}."
        )
    return weights


@dataclass
class Directions:
    """The directions of one matrix that are protected; all as shares that add up over the ranks.

    basis: [rows or columns, r] on `side`. delta: ΔW along them, [columns or rows, r].
    """

    name: str
    parameter: nn.Parameter
    side: Side
    basis: Tensor
    delta: Tensor

    def own(self, shard: Shard) -> Shard:
        """The part of a shard that this rank answers for."""
        return shard

    def along(self, shard: Shard) -> Tensor:
        """This rank's share of the coordinates [columns or rows, r] of what `shard` is a piece of."""
        return Piece(shard.values, shard.start, shards.shape_of(self.parameter)).along(self.basis, self.side)

    def remove(self, shard: Shard, coordinates: Tensor) -> None:
        """Take `coordinates` along the directions out of `shard`, in place."""
        Piece(shard.values, shard.start, shards.shape_of(self.parameter)).remove(self.basis, self.side, coordinates)

    def kept(self) -> dict[str, Tensor]:
        return {"basis": self.basis, "delta": self.delta}


@dataclass
class Line:
    """The single direction ΔW/‖ΔW‖ of a flattened matrix.

    unit: this rank's piece of it, in the host's memory, at the place of the master's. delta: ‖ΔW‖, [1, 1].
    """

    name: str
    parameter: nn.Parameter
    side: Side
    unit: Shard
    delta: Tensor

    def own(self, shard: Shard) -> Shard:
        values = shard.values.narrow(0, self.unit.start - shard.start, len(self.unit.values))
        return replace(self.unit, values=values)

    def along(self, shard: Shard) -> Tensor:
        values = self.own(shard).values
        return (values * self.unit.values.to(values.device)).sum(dtype=torch.float64).float().reshape(1, 1)

    def remove(self, shard: Shard, coordinates: Tensor) -> None:
        own = self.own(shard)
        own.values.sub_(self.unit.values.to(own.values.device) * coordinates.reshape(()))
        if shard.replicated and not own.replicated:
            # bfloat16 at stage 1: gradients are whole on every rank, and DeepSpeed takes their norm there.
            shard.values[: own.start - shard.start] = 0
            shard.values[own.end - shard.start :] = 0
            torch.distributed.all_reduce(shard.values)

    def kept(self) -> dict[str, Tensor]:
        return {"unit": self.unit.values, "delta": self.delta}


class Preservation(SteeredUntil):
    """Static steering up to the boundary, then plain training that may not move the weights back along ΔW.

    Writes preservation.jsonl into the checkpoint's folder: a row per matrix. Raises BulwarkError at the boundary if a
    matrix has not moved (see `PreservationSettings.allow_partial`).
    """

    def __init__(
        self,
        course: Course,
        vectors: FusedVectors,
        intervention: InterventionSettings,
        settings: PreservationSettings,
        log_every: int = 10,
    ) -> None:
        super().__init__(course, vectors, intervention, settings)
        self.settings, self.log_every = settings, log_every
        self.guards: list[Directions | Line] = []
        self.skipped: list[str] = []
        # Whether the weights may move along the directions at all; else they stay where they were at the boundary.
        self._partial = settings.strength < 1 or settings.remove == "eroding"
        self._rows: list[dict[str, Any]] = []
        self._anchor: list[Tensor] = []  # the weights' coordinates at the boundary
        self._held: list[Tensor] = []  # where the last step left them
        self._history: list[tuple[int, Tensor]] = []  # after that many steps: [retained, drift]
        self._sums: dict[str, Tensor] = {}

    def watched(self, model: nn.Module) -> list[tuple[nn.Parameter, Side]]:
        settings = self.settings
        return protected_weights(model, settings.scope, settings.layers, settings.allow_partial)

    def second_phase(self, batch: Batch) -> AbstractContextManager[None]:
        return nullcontext()

    def cross(self, engine: DeepSpeedEngine, snapshots: list[Displacement]) -> None:
        settings, device = self.settings, engine.device
        become_differences(engine, snapshots, rounded=settings.delta == "rounded_weights_as_published")
        norms = norms_of(snapshots, device)
        self.skipped = [
            moved.name for moved, norm in zip(snapshots, norms, strict=True) if not norm > settings.min_delta_norm
        ]
        if self.skipped and (not settings.allow_partial or len(self.skipped) == len(snapshots)):
            raise BulwarkError(
                f"{len(self.skipped)} of {len(snapshots)} matrices have not moved after {self.boundary} steps "
                f"(‖ΔW‖ up to {settings.min_delta_norm:g}), so there is nothing to preserve: "
                f"{', '.join(self.skipped[:5])} … Set the boundary later, or preservation.allow_partial: true."
            )
        kept = [(moved, norm) for moved, norm in zip(snapshots, norms, strict=True) if moved.name not in self.skipped]
        self._guard(kept, device)
        self._anchor = self._coordinates(engine)
        self._held = list(self._anchor)
        self._history.append((self.boundary, torch.tensor([1.0, 0.0])))
        if settings.moments == "reset":
            shards.reset_moments(engine)
        elif settings.moments == "project":
            self._project([shards.local_moment(engine, guard.parameter, "exp_avg") for guard in self.guards])
        captured = [row["captured_energy"] for row in self._rows]
        log.info(
            "Step %d: ΔW of %d matrices is preserved; the directions carry %.0f %% of it (least: %.0f %%).",
            self.boundary, len(captured), 100 * sum(captured) / len(captured), 100 * min(captured),
        )  # fmt: skip

    def after_backward(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if not self.crossed or self.settings.project == "update":
            return
        with torch.no_grad():
            gradients = [shards.local_gradient(engine, guard.parameter) for guard in self.guards]
            removed, whole = self._project(gradients)
            shards.gradients_edited(engine, [guard.parameter for guard in self.guards])
            self._count(gradient_removed=removed, gradient=whole)

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if not self.crossed:
            return
        measure = (step + 1) % self.log_every == 0 or step + 1 == total
        with torch.no_grad():
            if self.settings.project != "gradient":
                self._restore(engine)
            if measure:
                self._history.append((step + 1, self._moved(engine)))

    def metrics(self) -> dict[str, float]:
        if not self.crossed:
            return {}
        sums = {name: float(value) for name, value in self._sums.items()}
        self._sums = {}
        values = dict(zip(("retained", "drift"), self._history[-1][1].tolist(), strict=True))
        if "gradient" in sums:
            values["gradient_share_removed"] = sums["gradient_removed"] / sums["gradient"] if sums["gradient"] else 0.0
        if "update_removed" in sums:
            values["update_removed"] = (sums["update_removed"] / sums["updates"]) ** 0.5
            values["eroding_directions"] = sums["eroding"] / sums["updates"]
        return {f"preservation/{name}": value for name, value in values.items()}

    def finish(self, model: nn.Module, step: int, total: int) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        (self.course.job.folder / ROWS).write_text(lines, encoding="utf-8")

    def report(self) -> dict[str, Any]:
        captured = [row["captured_energy"] for row in self._rows]
        described = {
            "protected": len(self._rows),
            "skipped": self.skipped,
            "delta_norm": sum(row["delta_norm"] ** 2 for row in self._rows) ** 0.5,
            "captured_energy": {"mean": sum(captured) / len(captured), "least": min(captured)} if captured else None,
            "retained_and_drift": [
                [step, *(round(value, 6) for value in measured.tolist())] for step, measured in self._history
            ],
        }
        return {"steering": self.steering_record() | described}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "guards": {guard.name: guard.kept() for guard in self.guards},
            "held": self._held,
            "anchor": self._anchor,
            "history": self._history,
            "skipped": self.skipped,
            "rows": self._rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._master_device
        places = {moved.name: moved for moved in self._snapshots}
        self.guards = []
        for name, kept in state["guards"].items():
            place, delta = places[name], kept["delta"].to(device)
            weight = name, place.parameter, place.side
            if "unit" in kept:
                self.guards.append(Line(*weight, Shard(kept["unit"], place.start, place.replicated), delta))
            else:
                self.guards.append(Directions(*weight, kept["basis"].to(device), delta))
        self._held, self._anchor = ([part.to(device) for part in state[key]] for key in ("held", "anchor"))
        self._history, self.skipped, self._rows = state["history"], state["skipped"], state["rows"]
        super().load_state_dict(state)

    def _guard(self, kept: list[tuple[Displacement, float]], device: torch.device) -> None:
        """Take the directions of every (ΔW, ‖ΔW‖) that is protected, with what the file of rows says of each."""
        settings, flat = self.settings, self.settings.shape == "flat"
        subspaces = main_subspaces(
            [] if flat else [moved for moved, _ in kept],
            device,
            rank=settings.rank,
            oversample=settings.oversample,
            power_iterations=settings.power_iterations,
            qr_slice=settings.basis == "qr_slice_as_published",
        )
        for number, (moved, norm) in enumerate(kept):
            weight = moved.name, moved.parameter, moved.side
            if flat:
                unit = Shard(moved.values.div_(norm), moved.start, moved.replicated)
                self.guards.append(Line(*weight, unit, torch.tensor([[norm]], device=self._master_device)))
                captured, strengths = 1.0, [norm]
            else:
                basis, delta = (part.to(self._master_device) for part in subspaces[number])
                self.guards.append(Directions(*weight, basis, delta))
                along = delta.norm(dim=0)
                captured, strengths = float(along.square().sum()) / norm**2, along.tolist()
            self._rows.append(
                {
                    "weight": moved.name,
                    "shape": list(moved.shape),
                    "side": "both" if flat else moved.side,
                    "delta_norm": norm,
                    "captured_energy": captured,
                    "delta_along_directions": strengths,
                }
            )

    def _coordinates(self, engine: DeepSpeedEngine) -> list[Tensor]:
        return self._along(self.guards, [shards.local_master(engine, guard.parameter) for guard in self.guards])

    def _along(
        self, guards: list[Directions | Line], held: list[Shard], further: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The coordinates of whole matrices, and the sums of `further`, in one all-reduce."""
        if not guards:
            return []
        replicated = guards[0].own(held[0]).replicated
        shares = [guard.along(shard) for guard, shard in zip(guards, held, strict=True)]
        return added_up(shares + (further or []), replicated, self._engine_device)

    def _project(self, held: list[Shard | None]) -> tuple[Tensor, Tensor]:
        """Edit gradients (or first moments) in place; return the squared norms of what was removed and of all."""
        pairs = [(guard, shard) for guard, shard in zip(self.guards, held, strict=True) if shard is not None]
        guards, present = [guard for guard, _ in pairs], [shard for _, shard in pairs]
        squares = [guard.own(shard).values.square().sum() for guard, shard in pairs]
        coordinates_of = self._along(guards, present, squares)
        removed = torch.zeros((), device=self._engine_device)
        for guard, shard, coordinates in zip(guards, present, coordinates_of, strict=False):
            against, _ = self._surplus(-coordinates, guard.delta)  # descent moves against the gradient
            guard.remove(shard, -against)
            removed += against.square().sum().to(removed.device)
        whole = (
            torch.stack([square.to(removed.device) for square in coordinates_of[len(pairs) :]]).sum()
            if pairs
            else removed
        )
        return removed, whole

    def _restore(self, engine: DeepSpeedEngine) -> None:
        """Take back what the optimizer step has done along the directions."""
        removed, eroding = (torch.zeros((), device=self._engine_device) for _ in range(2))
        masters = [shards.local_master(engine, guard.parameter) for guard in self.guards]
        coordinates_of = self._along(self.guards, masters)
        for number, (guard, shard, now) in enumerate(zip(self.guards, masters, coordinates_of, strict=True)):
            surplus, against = self._surplus(now - self._held[number], guard.delta)
            guard.remove(shard, surplus)
            if self._partial:
                self._held[number] = now - surplus
            removed += surplus.square().sum().to(removed.device)
            eroding += against.mean().to(removed.device) / len(self.guards)
        engines.publish(engine)
        self._count(update_removed=removed / self._delta_square(), eroding=eroding, updates=torch.ones(()))

    def _surplus(self, movement: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The part of a movement along the directions [·, r] that is to be removed; which directions it erodes, [r]."""
        eroding = ((movement * delta).sum(dim=0) < 0).to(movement)
        surplus = self.settings.strength * movement
        return surplus * eroding if self.settings.remove == "eroding" else surplus, eroding

    def _delta_square(self) -> Tensor:
        return torch.stack([guard.delta.square().sum() for guard in self.guards]).sum().to(self._engine_device)

    def _moved(self, engine: DeepSpeedEngine) -> Tensor:
        """[retained, drift], from the weights as they are."""
        along, square = (torch.zeros((), device=self._engine_device) for _ in range(2))
        for guard, now, anchor in zip(self.guards, self._coordinates(engine), self._anchor, strict=True):
            along += ((now - anchor) * guard.delta).sum().to(along.device)
            square += (now - anchor).square().sum().to(square.device)
        whole = self._delta_square()
        return torch.stack([1 + along / whole, (square / whole).sqrt()])

    def _count(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
