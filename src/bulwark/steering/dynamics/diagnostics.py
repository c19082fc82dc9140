"""What a trait vector's direction is to a training: gradients, hidden states and weights, as numbers along v̂ = v/‖v‖.

The diagnostics of the authors' gradient analyser (Guan et al., arXiv 2609.10142, Sec. 3 and App. C, and its code), from
quantities that are means over all response tokens of a whole optimizer step, over all micro-batches and ranks:
hidden states h̄ and gradients ḡ after each block that is looked at, and of the vector's block l the inputs ā, outputs ȳ
and output gradients δ̄ of o_proj and down_proj. Gradients are those of the sum of the tokens' losses, so that neither
the number of tokens of a step nor of ranks is in them.

| of        | quantities                                                                                          |
|-----------|-----------------------------------------------------------------------------------------------------|
| residual  | gradient_norm, gradient_cosine, gradient_projection (ḡ·v̂), gradient_parallel, gradient_orthogonal,  |
|           | gradient_orthogonal_share; x = -ḡ·v̂ (above 0: training pushes towards v), y = h̄·v̂, z = x·y            |
|           | state_cosine, state_norm_ratio, state_relative_change of h̄ with the vector added against without;    |
|           | state_projection, state_change_projection, state_change_projection_share (of the change's norm)     |
| o_proj,   | x = -δ̄·v̂, y = ā·(Wᵀv̂), which is the output's (Wā)·v̂, so that no weight is put together; z = x·y;      |
| down_proj | output_projection; update_norm, energy_parallel = ‖v̂ᵀΔW‖²/‖ΔW‖² of the update since the start or over   |
|           | a window, update_projection_… of ΔWᵀv and update_opposition_… of the cosines of its columns with -v  |

x, y and z are also given divided by the norms: x by ‖δ̄‖ (‖ḡ‖), y by ‖W‖‖ā‖ (‖h̄‖), so that modules can be compared.
Where an objective drops rows at a layer, gradients above it are not those of all tokens, and are left undefined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import blocks_of, check_layer, site_module
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.screening.split import SplitModel
from bulwark.steering.settings import InterventionSettings
from bulwark.training.batches import Batch
from bulwark.training.displacement import Displacement, Piece, added_up, snapshot
from bulwark.training.shards import local_master

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Sums = dict[str, Tensor]
Quantities = dict[tuple[int, str, str], Tensor]
"""(layer key, module, quantity) → 0-d tensor; not finite where it is not defined."""

SITES = ("o_proj", "down_proj")
_CHUNK = 4096  # tokens that are made fp32 at once
_EXTREME = 0.05  # the share of columns in "lowest" and "highest"


def monitored(layer: int, layers: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The layer keys to look at, the vector's among them. Raises ConfigurationError for one outside 1 … N-1."""
    if wanted is None:
        wanted = range(max(1, layer - 10), min(layers - 1, layer + 15) + 1, 5)
    for key in wanted:
        check_layer(key, layers, "analysis.layers")
    return tuple(sorted({*wanted, layer}))


def pooled(values: Tensor, mask: Tensor) -> Tensor:
    """The sum [hidden] in fp32 of `values` [batch, seq, hidden] over the tokens of `mask` [batch, seq]."""
    flat, chosen = values.detach().flatten(0, 1), mask.flatten()
    total = torch.zeros(flat.shape[-1], device=flat.device)
    for part, weights in zip(flat.split(_CHUNK), chosen.split(_CHUNK), strict=True):
        total += weights.float() @ part.float()
    return total


def _add(sums: Sums, name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


class GradientWatch:
    """Sums of what flows through the graph that is really trained, at layers `keys` and in block `layer`.

    Only backward passes of the engine count: what a detector differentiates by itself is not training. Values are taken
    before an intervention changes them and, with gradient checkpointing, once.
    """

    def __init__(self, engine: DeepSpeedEngine, layer: int, keys: Sequence[int]) -> None:
        self.engine, self.layer = engine, layer
        self.modules = _places(engine, layer, keys)
        self.sums: Sums = {}
        self.ranks = torch.distributed.get_world_size()

    @contextlib.contextmanager
    def on(self, batch: Batch) -> Iterator[None]:
        """Within it, what happens to the response tokens of `batch` is added to `sums`."""
        mask = token_mask(batch, "response")
        inputs: dict[str, Tensor] = {}  # of each projection of block `layer`, from its call to its output
        projections = {name: module for name, module in self.modules.items() if not name.startswith("residual")}
        with (
            hooks.capture_inputs(projections, inputs.__setitem__),
            hooks.capture(
                self.modules, lambda name, hidden: self._see(name, hidden, inputs.pop(name, None), mask), first=True
            ),
        ):
            yield

    def _see(self, name: str, hidden: Tensor, inputs: Tensor | None, mask: Tensor) -> None:
        if not hidden.requires_grad or self.engine._running_engine_backward:  # a recomputed block
            return
        fits = hidden.shape[:2] == mask.shape
        seen = {}
        if name.endswith(f"/{self.layer}") and fits:
            seen = {"output": pooled(hidden, mask)}
            if inputs is not None:
                seen["input"] = pooled(inputs, mask)

        def backward(gradient: Tensor) -> None:
            if not self.engine._running_engine_backward:
                return
            if not fits:  # rows were left out above the block where this was decided
                _add(self.sums, f"{name}/unknown", torch.ones((), device=gradient.device))
                return
            # The loss that is differentiated is the step's mean times the ranks, because DeepSpeed averages.
            _add(self.sums, f"{name}/gradient", pooled(gradient, mask) / self.ranks)
            for what, value in seen.items():
                _add(self.sums, f"{name}/{what}", value)

        hidden.register_hook(backward)

    def complete(self, hidden: int) -> Sums:
        """`sums` with zeros for what is not there, so that all ranks have the same names; hidden: of the residuals."""
        places = {}
        for name, module in self.modules.items():
            places |= {f"{name}/unknown": (), f"{name}/gradient": (hidden,)}
            if name.endswith(f"/{self.layer}"):
                places[f"{name}/output"] = (hidden,)
                if not name.startswith("residual"):
                    places[f"{name}/input"] = (module.in_features,)
        device = self.engine.device
        return {
            name: self.sums.get(name, torch.zeros(shape, device=device)).to(device) for name, shape in places.items()
        }


def _places(engine: DeepSpeedEngine, layer: int, keys: Sequence[int]) -> dict[str, nn.Module]:
    """What is looked at, by "module/layer key": the blocks `keys`, and both projections of block `layer`."""
    blocks = blocks_of(engine.module)
    residual = {f"residual/{key}": blocks[key - 1] for key in keys}
    return residual | {f"{site}/{layer}": site_module(engine.module, layer, site) for site in SITES}


@torch.no_grad()
def states(
    engine: DeepSpeedEngine,
    batches: Sequence[Batch],
    layer: int,
    keys: Sequence[int],
    vector: Tensor,
    intervention: InterventionSettings,
) -> Sums:
    """Sums over the response tokens of what blocks put out without and with the vector added, in evaluation mode.

    Two passes through the blocks up to the highest key. All ranks must call it.
    """
    split = SplitModel(engine, max(keys))
    places = _places(engine, layer, keys)
    adding = Intervention(engine.module, {layer: vector}, site=intervention.site, adaptive=intervention.adaptive)
    sums: Sums = {}

    def look(kind: str, batch: Batch) -> None:
        mask = token_mask(batch, "response")
        with hooks.capture(places, lambda place, hidden: _add(sums, f"{kind}/{place}", pooled(hidden, mask))):
            split.trunk(batch)

    engine.eval()
    try:
        for batch in batches:
            look("natural", batch)
            with adding.on(token_mask(batch, intervention.tokens), intervention.alpha):
                look("added", batch)
    finally:
        split.traces.other()
        engine.train()
    return sums


def weights_of(engine: DeepSpeedEngine, layer: int) -> dict[str, Displacement]:
    """Copies of this rank's pieces of the block's o_proj and down_proj. Raises BulwarkError if they are no matrices
    [out, in] that train."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    snapshots = {}
    for site in SITES:
        module = site_module(engine.module, layer, site)
        if not isinstance(module, nn.Linear) or not module.weight.requires_grad:
            raise BulwarkError(
                f"{site} of layer {layer} is a {type(module).__name__} whose own weights do not train, so that "
                "they have no update to look at. Set analysis.weights: false."
            )
        snapshots[site] = snapshot(engine, names[id(module.weight)], module.weight, "output")
    return snapshots


@torch.no_grad()
def update_sums(engine: DeepSpeedEngine, before: Displacement, vector: Tensor) -> Sums:
    """This rank's share of ΔWᵀv and of the squared norms of ΔW's columns, both [in]; ΔW = W - `before`."""
    now = local_master(engine, before.parameter).values
    moved = now - before.values.to(now.device)
    along = Piece(moved, before.start, before.shape).transposed_times(vector.to(moved.device).view(-1, 1))
    ones = torch.ones(before.shape[0], 1, device=moved.device)
    squares = Piece(moved.square(), before.start, before.shape).transposed_times(ones)
    sums = {"along": along, "squares": squares}
    return {name: value[:, 0].to(engine.device) * _counts(before) for name, value in sums.items()}


@torch.no_grad()
def squared_norm(engine: DeepSpeedEngine, like: Displacement) -> Tensor:
    """This rank's share of ‖W‖²."""
    share = local_master(engine, like.parameter).values.double().square().sum().float().to(engine.device)
    return share * _counts(like)


def _counts(displacement: Displacement) -> float:
    """0 where another rank already gives the whole."""
    return 0.0 if displacement.replicated and torch.distributed.get_rank() > 0 else 1.0


def reduced(sums: Sums, device: torch.device) -> Sums:
    """The sums over all ranks, in one all-reduce; all ranks must call it with the same names."""
    names = sorted(sums)
    return dict(zip(names, added_up([sums[name] for name in names], False, device), strict=True))


def gradient_quantities(sums: Sums, layer: int, keys: Sequence[int], tokens: int, unit: Tensor) -> Quantities:
    """Of the gradients after the blocks `keys`, and the residual chain rule at `layer`.

    sums: of `GradientWatch`, reduced. tokens: of the step. unit: v̂ [hidden].
    """
    quantities: Quantities = {}
    for key in keys:
        gradient = _known(sums, f"residual/{key}")
        norm = gradient.norm()
        quantities[key, "residual", "gradient_norm"] = norm
        if key != layer:
            continue
        along = gradient @ unit
        across = (gradient - along * unit).norm()
        values = {
            "gradient_projection": along,
            "gradient_cosine": _ratio(along, norm),
            "gradient_parallel": along.abs(),
            "gradient_orthogonal": across,
            "gradient_orthogonal_share": _ratio(across, norm),
        }
        quantities |= {(key, "residual", name): value for name, value in values.items()}
        state = sums[f"residual/{key}/output"] / tokens
        quantities |= _chain((key, "residual"), -along, state @ unit, norm, state.norm())
    return quantities


def chain_quantities(
    sums: Sums, layer: int, tokens: int, unit: Tensor, norms: Mapping[str, Tensor], biases: Mapping[str, Tensor]
) -> Quantities:
    """The chain rule through o_proj and down_proj: how ΔW ∝ -δ̄āᵀ moves their output along v̂.

    norms: ‖W‖ by site, if known; biases: b [hidden] by site, if there are any.
    """
    quantities: Quantities = {}
    for site in SITES:
        name = f"{site}/{layer}"
        gradient = _known(sums, name)
        output, given = sums[f"{name}/output"] / tokens, sums[f"{name}/input"] / tokens
        if site in biases:
            output = output - biases[site]
        size = norms[site] * given.norm() if site in norms else torch.full_like(gradient[0], torch.nan)
        quantities |= _chain((layer, site), -(gradient @ unit), output @ unit, gradient.norm(), size)
    return quantities


def state_quantities(sums: Sums, layer: int, keys: Sequence[int], tokens: int, unit: Tensor) -> Quantities:
    """Of hidden states with the vector added against those without. sums: of `states`, reduced."""
    quantities: Quantities = {}
    for key in keys:
        natural = sums[f"natural/residual/{key}"] / tokens
        change = sums[f"added/residual/{key}"] / tokens - natural
        norm, moved = natural.norm(), natural + change
        values = {
            "state_cosine": _ratio(natural @ moved, norm * moved.norm()),
            "state_norm_ratio": _ratio(moved.norm(), norm),
            "state_relative_change": _ratio(change.norm(), norm),
        }
        if key == layer:
            along = change @ unit
            values |= {
                "state_projection": natural @ unit,
                "state_change_projection": along,
                "state_change_projection_share": _ratio(along, change.norm()),
            }
        quantities |= {(key, "residual", name): value for name, value in values.items()}
    for site in SITES:
        quantities[layer, site, "output_projection"] = sums[f"natural/{site}/{layer}"] @ unit / tokens
    return quantities


def update_quantities(along: Tensor, squares: Tensor, layer: int, site: str, norm: Tensor) -> Quantities:
    """Of ΔW since the start, from ΔWᵀv and its columns' squared norms, both [in] and reduced. norm: ‖v‖."""
    opposed = _ratio(-along, squares.sqrt() * norm)  # NaN for a column that has not moved
    count = max(1, round(_EXTREME * len(along)))
    values = {
        "update_norm": squares.sum().sqrt(),
        "energy_parallel": parallel_energy(along, squares, norm),
        "update_projection_mean": along.mean(),
        "update_projection_sum": along.sum(),
        "update_projection_lowest": along.topk(count, largest=False).values.mean(),
        "update_projection_min": along.min(),
        "update_projection_max": along.max(),
        "update_opposition_mean": opposed.nanmean(),
        "update_opposition_highest": opposed.nan_to_num(-torch.inf).topk(count).values.mean(),
        "update_opposition_min": opposed.nan_to_num(torch.inf).min(),
        "update_opposition_max": opposed.nan_to_num(-torch.inf).max(),
    }
    return {(layer, site, name): value for name, value in values.items()}


def parallel_energy(along: Tensor, squares: Tensor, norm: Tensor) -> Tensor:
    """E∥ = ‖v̂ᵀΔW‖²/‖ΔW‖², the share of an update that moves the output along v; NaN if there is no update."""
    return _ratio(along.square().sum(), squares.sum() * norm.square())


def _chain(place: tuple[int, str], x: Tensor, y: Tensor, x_size: Tensor, y_size: Tensor) -> Quantities:
    x_share, y_share = _ratio(x, x_size), _ratio(y, y_size)
    values = {"x": x, "y": y, "z": x * y}
    values |= {"x_normalised": x_share, "y_normalised": y_share, "z_normalised": x_share * y_share}
    return {(*place, name): value for name, value in values.items()}


def _known(sums: Sums, name: str) -> Tensor:
    """The mean gradient, NaN if rows were left out on any rank: then it is not one over all tokens."""
    return torch.where(sums[f"{name}/unknown"] > 0, torch.nan, sums[f"{name}/gradient"])


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(other > 0, one / other, torch.nan)
