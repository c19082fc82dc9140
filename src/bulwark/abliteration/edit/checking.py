"""Whether an edit does on this very model what it promises, looked at before a search is begun.

Families differ in what writes into the residual stream beside attention and MLP (experts next to the MLP, an input per
layer, a norm of another name). So a random unit vector v is taken out of every target, and the stream is read at both
ends of each block: after it vᵀh has to be what it was before, but for a constant (biases, which no edit changes) and a
scale of the whole stream. What is left is compared with what the block writes along v without the edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import Target
from bulwark.abliteration.settings import Component
from bulwark.errors import BulwarkError
from bulwark.models import hooks
from bulwark.models.anatomy import blocks_of, hidden_size, watching
from bulwark.prompts.builder import Prompt

_PROMPTS = 4
_MOST_LEFT = 1e-3  # of what a block writes along the direction
_ROUNDINGS = 2.0  # of the stream, by which vᵀh may differ in the model's own number type


def check_edits(model: nn.Module, targets: Sequence[Target], prompts: Sequence[Prompt], seed: int = 0) -> None:
    """Raise BulwarkError that names the first block from which the direction is not gone when its targets are edited.

    prompts: the first few are read. Where only attention or only the MLP is edited, the rest of a block is left out of
    the pass, as it may write what it likes.
    """
    width = hidden_size(model)
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    vector = vector / vector.norm()
    some = prompts[:_PROMPTS]
    both = {target.component for target in targets} == {"attention", "mlp"}
    edits = Edits(targets)  # as they are: any normalization is a change of the same outputs
    with _only(model, targets) if not both else ExitStack():
        plain, lengths = _read(model, some, vector)
        with edits.on([{target.path: (vector, 1.0) for target in targets}]) as rows:
            rows.are(torch.zeros(1, dtype=torch.long))
            edited, _ = _read(model, some, vector)
    rounding = _ROUNDINGS * torch.finfo(model.dtype).eps / width**0.5
    for layer, block in enumerate(blocks_of(model)):
        own = [target for target in targets if target.layer == layer]
        if not own:
            continue
        written = float((plain[layer + 1] - plain[layer]).std())
        left = float(_unexplained(edited[layer], edited[layer + 1]).std())
        allowed = _MOST_LEFT * written + rounding * float(max(lengths[layer], lengths[layer + 1]))
        if not left <= allowed:
            raise BulwarkError(
                f"Block {layer} ({type(block).__name__}) still writes {left / (written or left):.1%} of a direction "
                f"that was taken out of {', '.join(_names(own))}: something else in it writes into the stream, or a "
                f"norm of another name stands behind them. This family cannot be edited with edit.components: "
                f"{_components(own)}; attack it by fine-tuning, or edit the part alone that can be."
            )


def _read(model: nn.Module, prompts: Sequence[Prompt], vector: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """vᵀh at all tokens of the prompts, [tokens] in float64, and the mean length of h, by row.

    Row 0 is the first block's input, row l what block l (from 1) puts out.
    """
    layers = len(blocks_of(model))
    along: list[list[Tensor]] = [[] for _ in range(layers + 1)]
    sizes: list[list[Tensor]] = [[] for _ in range(layers + 1)]

    def see(row: int, states: Tensor) -> None:
        if not isinstance(states, Tensor):
            raise BulwarkError(
                f"{type(model).__name__} is not known here: its blocks put out a {type(states).__name__}."
            )
        wide = states.double()
        along[row].append((wide @ vector.to(wide)).flatten().cpu())
        sizes[row].append(wide.norm(dim=-1).flatten().cpu())

    with torch.inference_mode(), watching(model, see):
        for prompt in prompts:
            model.base_model(input_ids=torch.tensor([prompt.ids], device=model.device), use_cache=False)
    return [torch.cat(parts) for parts in along], [torch.cat(parts).mean() for parts in sizes]


def _unexplained(before: Tensor, after: Tensor) -> Tensor:
    """What is left of `after` beside a multiple of `before` and a constant, by least squares; [tokens]."""
    known = torch.stack([torch.ones_like(before), before], dim=1)
    return after - known @ torch.linalg.lstsq(known, after[:, None]).solution[:, 0]


@contextmanager
def _only(model: nn.Module, targets: Sequence[Target]) -> Iterator[None]:
    """Within it, no part of a block writes anything but those that hold a target, and norms."""
    kept = {id(target.module) for target in targets}
    silent = {
        f"{layer}.{name}": part
        for layer, block in enumerate(blocks_of(model))
        for name, part in block.named_children()
        if "norm" not in name and any(True for _ in part.parameters())
        if not kept & {id(module) for module in part.modules()}
    }
    with hooks.replace(silent, lambda _, states: torch.zeros_like(states)):
        yield


def _names(targets: Sequence[Target]) -> list[str]:
    return [target.path for target in targets]


def _components(targets: Sequence[Target]) -> str:
    names: list[Component] = [target.component for target in targets]
    return f"[{', '.join(dict.fromkeys(names))}]"
