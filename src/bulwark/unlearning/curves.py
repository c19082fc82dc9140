"""A record of several numbers per optimizer step, added up over ranks and thinned out for a manifest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bulwark.training import engine as engines

_POINTS = 200


class Curves:
    """Named shares of an optimizer step's numbers, which all ranks and micro-batches add up."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._rows: list[Tensor] = []

    def begin(self, device: torch.device) -> None:
        """A new optimizer step."""
        self._rows.append(torch.zeros(len(self.names), dtype=torch.float64, device=device))

    def add(self, name: str, value: Tensor | float) -> None:
        """This rank's share of a number of the present step."""
        self._rows[-1][self.names.index(name)] += torch.as_tensor(value).detach().to(self._rows[-1])

    def latest(self, prefix: str) -> dict[str, float]:
        """This rank's shares in the present step, by name."""
        return {f"{prefix}/{name}": value for name, value in zip(self.names, self._rows[-1].tolist(), strict=True)}

    def report(self) -> dict[str, Any]:
        """At most 200 points [step, mean of each number since the point before]. All ranks must call it."""
        if not self._rows:
            return {}
        device = self._rows[-1].device  # those of a resumed run lie on the CPU
        rows = engines.over_ranks(torch.stack([row.to(device) for row in self._rows])).tolist()
        width = -(-len(rows) // _POINTS)
        parts = [rows[start : start + width] for start in range(0, len(rows), width)]
        points = [
            [min((n + 1) * width, len(rows)), *(sum(column) / len(part) for column in zip(*part, strict=True))]
            for n, part in enumerate(parts)
        ]
        return {"names": ["step", *self.names], "points": points}

    def state(self) -> list[list[float]]:
        """What a resumed run takes up with `restore`."""
        return [row.tolist() for row in self._rows]

    def restore(self, state: list[list[float]]) -> None:
        self._rows = [torch.tensor(row, dtype=torch.float64) for row in state]
