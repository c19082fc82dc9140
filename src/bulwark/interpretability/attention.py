"""How much attention parts of a prompt get at its last token, from which the response begins, by layer.

Attention weights are reduced in hooks: of [batch, heads, seq, seq] of one layer only the sums over each part, at the
last token and averaged over heads, leave it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of, first_part
from bulwark.models.batching import Batch, over_prompts
from bulwark.prompts.builder import Prompt

_ATTENTIONS = ("self_attn", "attention", "attn", "self_attention")


def attention_to_parts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    parts: Sequence[Mapping[str, Sequence[int]]],
    pad_id: int,
    *,
    token_budget: int | None = None,
) -> list[dict[str, list[float]]]:
    """Of each prompt {part: its share of the last token's attention at every layer, first to last}.

    parts: of each prompt {part: places}; every prompt has the same parts, and one without a place gets 0. A share is
    the sum over the part's tokens, averaged over the heads. Raises BulwarkError for a model whose attention cannot be
    read.
    """
    blocks = blocks_of(model)
    shares: list[dict[str, list[float]]] = [{part: [] for part in of_prompt} for of_prompt in parts]

    def work(batch: Batch) -> None:
        names = list(parts[0])
        masks = torch.zeros(len(names), *batch.ids.shape)
        for row, place in enumerate(batch.places):
            for index, name in enumerate(names):
                masks[index, row, list(parts[place][name])] = 1.0
        masks = masks.to(batch.ids.device)
        rows = torch.arange(len(batch.places), device=batch.ids.device)
        seen: list[Tensor] = []

        def see(weights: Tensor) -> None:
            at = rows.to(weights.device), batch.last.to(weights.device)
            last = weights[at[0], :, at[1]].float().mean(dim=1).to(rows.device)  # [batch, seq]
            seen.append((masks * last).sum(dim=-1).cpu())  # [parts, batch]

        with torch.inference_mode(), _watching_attention(model, see):
            model.base_model(input_ids=batch.ids, use_cache=False)
        if len(seen) != len(blocks):
            raise BulwarkError(f"{type(model).__name__}: {len(seen)} of {len(blocks)} layers have attention weights.")
        for layer in seen:
            for row, place in enumerate(batch.places):
                for index, name in enumerate(names):
                    shares[place][name].append(float(layer[index, row]))

    device = next(model.parameters()).device
    over_prompts(prompts, work, pad_id, device, token_budget=token_budget)
    return shares


@contextlib.contextmanager
def _watching_attention(model: nn.Module, see) -> Iterator[None]:
    """Within it `see` is called with the attention weights [batch, heads, seq, seq] of each layer, first to last.

    Only transformers' plain implementation computes them, so the model uses it meanwhile.
    """
    before = model.config._attn_implementation
    handles = []
    try:
        model.set_attn_implementation("eager")
        for block in blocks_of(model):
            name = first_part(block, _ATTENTIONS)
            if name is None:
                raise BulwarkError(f"{type(block).__name__} has no attention; looked for {', '.join(_ATTENTIONS)}.")
            handles.append(block.get_submodule(name).register_forward_hook(_giving(see)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)


def _giving(see):
    def hook(module: nn.Module, _: tuple, output: tuple) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise BulwarkError(f"{type(module).__name__} gives no attention weights, so attention cannot be measured.")
        see(weights)

    return hook
