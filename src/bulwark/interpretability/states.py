"""The residual stream at chosen tokens, batch by batch: what a hook sees is reduced to these tokens before it is kept.

Rows are numbered as in transformers' `hidden_states`: row 0 is what the first block is given (the embeddings, after
rotation or shift), row l what block l puts out, and the last one is taken after the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bulwark.models.anatomy import blocks_of, final_norm_of, watching
from bulwark.models.batching import Batch, over_prompts
from bulwark.prompts.builder import Prompt


@dataclass(frozen=True)
class Taken:
    """What is taken of one batch.

    items: the numbers of the tokens in what was asked for. states: {row: [items, hidden]}, float32, on the CPU, in the
    order of `items`.
    """

    items: list[int]
    states: dict[int, Tensor]


def over_tokens(
    model: nn.Module,
    prompts: Sequence[Prompt],
    tokens: Sequence[tuple[int, int]],
    see: Callable[[Taken], None],
    pad_id: int,
    *,
    rows: Collection[int] | None = None,
    token_budget: int | None = None,
) -> None:
    """Give `see` the residual stream at every one of `tokens`, (number of the prompt, place in it), batch by batch.

    rows: which rows are taken; None takes all. Prompts of which no token is asked for are not computed. Raises
    BulwarkError where memory does not suffice for a single prompt.
    """
    last = len(blocks_of(model))
    norm = final_norm_of(model)
    wanted = set(range(last + 1) if rows is None else rows)
    of_prompt: dict[int, list[int]] = {}
    for item, (prompt, _) in enumerate(tokens):
        of_prompt.setdefault(prompt, []).append(item)
    asked = list(of_prompt)

    def work(batch: Batch) -> None:
        items = [of_prompt[asked[place]] for place in batch.places]
        at = torch.tensor([row for row, of_row in enumerate(items) for _ in of_row], device=batch.ids.device)
        flat = [item for of_row in items for item in of_row]
        places = torch.tensor([tokens[item][1] for item in flat], device=batch.ids.device)
        states: dict[int, Tensor] = {}

        def keep(row: int, hidden: Tensor) -> None:
            if row in wanted:
                # a copy: nothing else of the hidden states outlives the hook
                chosen = hidden[at.to(hidden.device), places.to(hidden.device)].to(at.device)
                states[row] = (norm(chosen) if row == last else chosen).float().cpu()

        with torch.inference_mode(), watching(model, keep):
            model.base_model(input_ids=batch.ids, use_cache=False)
        see(Taken(flat, states))

    device = next(model.parameters()).device
    over_prompts([prompts[number] for number in asked], work, pad_id, device, token_budget=token_budget)
