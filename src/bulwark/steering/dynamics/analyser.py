"""What becomes of the trait vector's direction while a model trains, step by step (Guan et al., arXiv 2609.10142).

`Analyser` observes a training with any objective. Every so many optimizer steps, and in the last one, it takes what
`bulwark.steering.dynamics.diagnostics` defines and appends it to analysis.jsonl beside the checkpoint, one number per
line,

    {"step", "layer", "module", "quantity", "value", "phase"}

step: optimizer step, from 0; gradients are those of the step, hidden states and weights those after it. module:
residual, o_proj, down_proj. phase: "injection", "after" (the intervention was withdrawn) or "plain", as the objective's
`phase(step)` says. A value that is not defined (the cosine of a gradient of 0) is null. TensorBoard gets the same under
the authors' names. What a killed run wrote after its last state is removed when it resumes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.models.anatomy import blocks_of
from bulwark.steering.dynamics import diagnostics
from bulwark.steering.settings import AnalysisSettings, InterventionSettings
from bulwark.steering.steer import begin
from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.training.displacement import Displacement
from bulwark.training.finetuning import Course
from bulwark.training.observers import Observer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FILE = "analysis.jsonl"

_TAGS = {
    ("residual", "gradient_norm"): "GradAnalysis/L{}_grad_norm",
    ("residual", "gradient_projection"): "GradAnalysis/L{}_grad_proj_vm",
    ("residual", "gradient_cosine"): "GradAnalysis/L{}_grad_cos_vm",
    ("residual", "gradient_orthogonal_share"): "GradAnalysis/L{}_grad_ortho_ratio",
    ("residual", "state_cosine"): "ActAnalysis/L{}_cos_sim",
    ("residual", "state_norm_ratio"): "ActAnalysis/L{}_norm_ratio",
    ("residual", "state_relative_change"): "ActAnalysis/L{}_rel_change",
    ("residual", "state_change_projection"): "ActAnalysis/L{}_delta_proj_vm",
    ("residual", "state_change_projection_share"): "ActAnalysis/L{}_delta_proj_vm_ratio",
    ("residual", "state_projection"): "ActAnalysis/L{}_h_out_proj_vm",
    ("down_proj", "output_projection"): "ActAnalysis/L{}_h_mlp_proj_vm",
    ("down_proj", "update_projection_mean"): "WeightAnalysis/L{}_deltaW_mean_proj_on_vm",
    ("down_proj", "update_projection_sum"): "WeightAnalysis/L{}_deltaW_sum_proj_on_vm",
    ("down_proj", "update_projection_lowest"): "WeightAnalysis/L{}_deltaW_top5_proj_on_vm",
    ("down_proj", "update_projection_min"): "WeightAnalysis/L{}_deltaW_min_proj_on_vm",
    ("down_proj", "update_projection_max"): "WeightAnalysis/L{}_deltaW_max_proj_on_vm",
    ("down_proj", "update_opposition_mean"): "WeightAnalysis/L{}_deltaW_cos_with_neg_vm",
    ("down_proj", "update_opposition_highest"): "WeightAnalysis/L{}_deltaW_top5_cos_with_neg_vm",
    ("down_proj", "update_opposition_max"): "WeightAnalysis/L{}_deltaW_max_cos_with_neg_vm",
    ("down_proj", "update_opposition_min"): "WeightAnalysis/L{}_deltaW_min_cos_with_neg_vm",
    ("down_proj", "x"): "ChainRule/L{}_x_signed_update_toward_vm",
    ("down_proj", "y"): "ChainRule/L{}_y_neuron_proj_vm",
    ("down_proj", "z"): "ChainRule/L{}_z_signed_update_proxy",
    ("o_proj", "x"): "ChainRuleAttention/L{}_x_signed_update_toward_vm",
    ("o_proj", "y"): "ChainRuleAttention/L{}_y_attention_proj_vm",
    ("o_proj", "z"): "ChainRuleAttention/L{}_z_signed_update_proxy",
    ("residual", "x"): "ResidualChainRule/L{}_x_signed_update_toward_vm",
    ("residual", "y"): "ResidualChainRule/L{}_y_h_proj_vm",
    ("residual", "z"): "ResidualChainRule/L{}_z_signed_correction_momentum",
}


def analyser_of(course: Course, settings: Any, phase: Callable[[int], str]) -> Analyser:
    """The analyser that the `analysis` of a step's settings describes.

    settings: their vectors and intervention are used where the analysis names none of its own. phase: the objective's.
    Raises ConfigurationError for vectors that do not fit the model or come from another checkpoint.
    """
    wanted: AnalysisSettings = settings.analysis
    vectors = wanted.vectors or settings.vectors
    return Analyser(
        wanted,
        layer=vectors.layer,
        vector=begin(course, vectors).at[vectors.layer],
        intervention=wanted.intervention or getattr(settings, "intervention", None) or InterventionSettings(),
        folder=course.job.folder,
        phase=phase,
    )


@dataclass(eq=False)
class Analyser(Observer):
    """Looks at a training's steps. What is trained is not changed by a bit.

    layer, vector: v [hidden] with its norm, at its layer key. intervention: what hidden states are compared with.
    folder: where analysis.jsonl and tensorboard/analysis/ go. phase: the name of a step's phase.
    Raises ConfigurationError for layer keys outside 1 … N-1.
    """

    settings: AnalysisSettings
    layer: int
    vector: Tensor
    intervention: InterventionSettings
    folder: Path
    phase: Callable[[int], str]

    def __post_init__(self) -> None:
        self._watch: diagnostics.GradientWatch | None = None
        self._batches: list[Batch] = []
        self._at_start: dict[str, Displacement] = {}
        self._at_window: dict[str, dict[str, Tensor]] = {}  # window → site → this rank's piece as it was
        self._events, self._opened = None, False

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        self.vector = self.vector.detach().float().to(engine.device)
        self.unit = self.vector / self.vector.norm()
        self.keys = diagnostics.monitored(self.layer, len(blocks_of(engine.module)), self.settings.layers)
        self.windows = {
            name: (round(begin * total), max(round(begin * total) + 1, round(end * total)))
            for name, (begin, end) in self.settings.windows.items()
        }
        if self.settings.weights:
            self._at_start = diagnostics.weights_of(engine, self.layer)

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if not self._opened:
            self._open(step)
        for name, (first, _) in self.windows.items():
            if self._at_start and step == first:
                now = diagnostics.weights_of(engine, self.layer)
                self._at_window[name] = {site: piece.values for site, piece in now.items()}
        if step % self.settings.every == 0 or step == total - 1:
            self._watch = diagnostics.GradientWatch(engine, self.layer, self.keys)
            self._batches = []
            # Taken now, because the step changes them, while what is put out belongs to the weights before it.
            self._norms = {
                f"norm/{site}": diagnostics.squared_norm(engine, weight) for site, weight in self._at_start.items()
            }
            self._biases = {
                site: engines.master_of(module.bias).to(engine.device)
                for site in diagnostics.SITES
                if (module := self._watch.modules[f"{site}/{self.layer}"]).bias is not None
            }

    def during(self, batch: Batch) -> AbstractContextManager[None]:
        if self._watch is None:
            return contextlib.nullcontext()
        self._batches.append(batch)
        return self._watch.on(batch)

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        ended = [name for name, (_, end) in self.windows.items() if step == end - 1 and name in self._at_window]
        if self._watch is not None or ended:
            self._write(step, self._measured(engine, ended))
        for name in ended:
            del self._at_window[name]
        self._watch, self._batches = None, []

    def finish(self, model: nn.Module, step: int, total: int) -> None:
        if self._events is not None:
            self._events.close()

    def report(self) -> dict[str, Any]:
        """Under "analysis", where the numbers are and what they are about."""
        described = {
            "file": FILE,
            "layer": self.layer,
            "layers": list(self.keys),
            "every": self.settings.every,
            "norm": float(self.vector.norm()),
            "intervention": self.intervention.model_dump(mode="json"),
            "windows": {name: list(steps) for name, steps in self.windows.items()},
        }
        return {"analysis": described}

    def state_dict(self) -> dict[str, Any]:
        return {"windows": self._at_window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at_window = state["windows"]

    def _measured(self, engine: DeepSpeedEngine, ended: list[str]) -> dict[tuple[int, str, str], float]:
        """All that is due after this step: one all-reduce over the ranks, one wait for the device."""
        layer, watch, sites = self.layer, self._watch, self._at_start
        sums: diagnostics.Sums = {}
        if watch is not None:
            sums |= self._norms | watch.complete(len(self.vector))
            sums |= diagnostics.states(engine, self._batches, layer, self.keys, self.vector, self.intervention)
        for site, before in sites.items():
            if watch is not None:
                sums |= self._moved(f"start/{site}", engine, before)
            for name in ended:
                then = replace(before, values=self._at_window[name][site])
                sums |= self._moved(f"{name}/{site}", engine, then)
        sums = diagnostics.reduced(sums, engine.device)
        quantities: diagnostics.Quantities = {}
        size = self.vector.norm()
        if watch is not None:
            tokens = self._batches[0].step_tokens
            norms = {site: sums[f"norm/{site}"].sqrt() for site in sites}
            quantities |= diagnostics.gradient_quantities(sums, layer, self.keys, tokens, self.unit)
            quantities |= diagnostics.chain_quantities(sums, layer, tokens, self.unit, norms, self._biases)
            quantities |= diagnostics.state_quantities(sums, layer, self.keys, tokens, self.unit)
            for site in sites:
                along, squares = sums[f"start/{site}/along"], sums[f"start/{site}/squares"]
                quantities |= diagnostics.update_quantities(along, squares, layer, site, size)
        for name in ended:
            for site in sites:
                along, squares = sums[f"{name}/{site}/along"], sums[f"{name}/{site}/squares"]
                quantities[layer, site, f"energy_parallel_{name}"] = diagnostics.parallel_energy(along, squares, size)
        values = torch.stack([value.float() for value in quantities.values()]).tolist()
        return dict(zip(quantities, values, strict=True))

    def _moved(self, prefix: str, engine: DeepSpeedEngine, before: Displacement) -> diagnostics.Sums:
        sums = diagnostics.update_sums(engine, before, self.vector)
        return {f"{prefix}/{name}": value for name, value in sums.items()}

    def _write(self, step: int, quantities: dict[tuple[int, str, str], float]) -> None:
        if self._events is None:
            return
        phase = self.phase(step)
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            for (layer, module, quantity), value in quantities.items():
                known = value if math.isfinite(value) else None
                row = {"step": step, "layer": layer, "module": module, "quantity": quantity, "value": known}
                file.write(json.dumps(row | {"phase": phase}) + "\n")
                if known is not None:
                    tag = _TAGS.get((module, quantity), f"Analysis/L{{}}_{module}_{quantity}").format(layer)
                    with contextlib.suppress(OSError):  # the curves are for looking at, the file above is the result
                        self._events.add_scalar(tag, known, step)

    def _open(self, step: int) -> None:
        """Before the first step of this process: take out what was written from this step on, on the main process."""
        self._opened = True
        if torch.distributed.get_rank() > 0:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] < step]
        beside = path.with_name(f".{FILE}.tmp")
        beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        beside.replace(path)
        self._events = SummaryWriter(str(self.folder / "tensorboard" / "analysis"), purge_step=step)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file but a last one that a kill has cut."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
