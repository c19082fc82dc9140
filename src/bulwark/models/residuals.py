"""Residuals at a prompt's last token: means and variances streamed in hooks, and the single ones where they are needed.

HERETIC's "first-token residuals": the residual stream at the last token of the prompt, from which the first token of
the response is predicted. Row 0 is what the first block is given, row l what block l puts out (after the residual
connection, before any norm). Sums are float64 on the CPU; only the last position leaves a hook, so that no hidden
states of whole sequences are ever held (the memory that users of HERETIC run out of).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of, final_norm_of, hidden_size, watching
from bulwark.models.batching import Batch, over_prompts
from bulwark.prompts.builder import Prompt


@dataclass(frozen=True)
class Residuals:
    """Statistics over `n` prompts, per layer 0 … L, in float64.

    mean, variance: [L+1, hidden]; the variance is the population's (divided by n). rows: [n, L+1, hidden] in float32 in
    the order of the prompts, or None if they were not kept.
    """

    n: int
    mean: Tensor
    variance: Tensor
    rows: Tensor | None = None

    def median(self) -> Tensor:
        """Component-wise median [L+1, hidden]; of an even number the lower one, as torch's. Needs the rows."""
        return self.kept().median(dim=0).values.double()

    def layer(self, layer: int) -> Tensor:
        """The rows at one layer, [n, hidden], float64."""
        return self.kept()[:, layer].double()

    def kept(self) -> Tensor:
        """Every prompt's residuals, [n, L+1, hidden] in float32. Raises BulwarkError if they were not kept."""
        if self.rows is None:
            raise BulwarkError("These residuals were streamed: only their means and variances are known.")
        return self.rows


def last_token_residuals(
    model: nn.Module,
    prompts: Sequence[Prompt],
    pad_id: int,
    *,
    winsorise: float = 1.0,
    final_norm: bool = False,
    keep: bool = False,
    token_budget: int | None = None,
) -> Residuals:
    """The residuals of `prompts` at their last token.

    winsorise: components of a prompt's residual at a layer are clamped to this quantile of their absolute values; 1 is
        off. final_norm: put row L through the model's final norm, as `output_hidden_states` of transformers does and
        HERETIC therefore has it. keep: keep every prompt's residuals as well.
    Raises BulwarkError if there is no prompt, the final norm is asked for and not found, or memory does not suffice.
    """
    if not prompts:
        raise BulwarkError("There are no prompts to take residuals from.")
    layers, hidden = len(blocks_of(model)), hidden_size(model)
    try:
        norm = final_norm_of(model) if final_norm else None
    except BulwarkError as error:
        raise BulwarkError(f"{error} Set directions.final_norm to false.") from None
    total = torch.zeros(layers + 1, hidden, dtype=torch.float64)
    squares = torch.zeros_like(total)
    shift = torch.zeros_like(total)  # about which squares are summed, so that small variances survive large means
    rows = torch.empty(len(prompts), layers + 1, hidden) if keep else None
    seen = 0

    def work(batch: Batch) -> None:
        nonlocal seen
        batch_rows = torch.empty(len(batch.places), layers + 1, hidden)
        at = torch.arange(len(batch.places), device=batch.ids.device)

        def see(row: int, states: Tensor) -> None:
            last = states[at.to(states.device), batch.last.to(states.device)]
            if row == layers and norm is not None:
                last = norm(last.to(at.device))
            batch_rows[:, row] = winsorised(last.float(), winsorise).cpu()

        with torch.inference_mode(), watching(model, see):
            model.base_model(input_ids=batch.ids, use_cache=False)
        wide = batch_rows.double()
        if not seen:
            shift.copy_(wide[0])
        total.add_((wide - shift).sum(0))
        squares.add_((wide - shift).square().sum(0))
        if rows is not None:
            rows[batch.places] = batch_rows
        seen += len(batch.places)

    over_prompts(prompts, work, pad_id, next(model.parameters()).device, token_budget=token_budget, title="residuals")
    offset = total / seen
    return Residuals(seen, offset + shift, (squares / seen - offset.square()).clamp(min=0.0), rows)


def winsorised(rows: Tensor, quantile: float) -> Tensor:
    """Clamp each row of [..., hidden] to the `quantile` of its own absolute values; 1 leaves it as it is."""
    if quantile >= 1.0:
        return rows
    bound = torch.quantile(rows.abs(), quantile, dim=-1, keepdim=True)
    return rows.clamp(-bound, bound)
