"""What the model that training starts from says of pairs of responses (DPO, Rafailov et al. 2023, arXiv 2305.18290).

DPO's reference is the model before training. It is the same at every step, so its log-probabilities of the pairs that
will be needed are taken before the first step, once each, and no second model is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bulwark.training import engine as engines
from bulwark.training.batches import Batch
from bulwark.unlearning.tampering.resistance import preference_margins

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class StartLikelihoods:
    """ln p of both responses of every pair at the start, by the pair's number.

    of(model, batch): ln p of the chosen and the rejected responses of a batch's rows, [rows] each.
    """

    def __init__(self, of: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]) -> None:
        self._of = of
        self.known: dict[int, tuple[float, float]] | None = None  # None: not taken yet

    def take(self, engine: DeepSpeedEngine, batches: Iterable[Batch]) -> None:
        """Take those of this rank's batches that are new, unless they were taken before; all ranks must call it."""
        if self.known is not None:
            return
        self.known = {}
        mode = engine.training
        engine.eval()
        with torch.no_grad():
            for batch in batches:
                new = any(set(row) - self.known.keys() for row in batch.rows)
                if not engines.over_ranks(torch.tensor(float(new), device=engine.device)):
                    continue  # on no rank: the data set begins anew
                chosen, rejected = (side.tolist() for side in self._of(engine, batch.to(engine.device)))
                for row, both in zip(batch.rows, zip(chosen, rejected, strict=True), strict=True):
                    self.known |= {example: both for example in row}
        engine.train(mode)

    def margins(self, model: nn.Module, batch: Batch) -> Tensor:
        """DPO's z of each row's pair [rows]: by how much more its chosen response has gained; any of a filler."""
        known = self.known or {}
        start = torch.tensor([known[row[0]] if row else (0.0, 0.0) for row in batch.rows]).T
        return preference_margins(*self._of(model, batch), *start.to(batch.input_ids.device))

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"reference": [[example, *both] for example, both in (self.known or {}).items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.known = {int(example): (chosen, rejected) for example, chosen, rejected in state["reference"]}
