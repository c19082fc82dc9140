"""How strongly each layer is edited: a tent over the layers, cut off beyond its foot (HERETIC).

    λ_l = M + (|l - p| / D)·(m - M)   where |l - p| ≤ D,   else 0

with M the weight at the peak p (a layer number from 0, which may lie between layers), m the weight at distance D.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """The tent of one component. min_weight is absolute: the sampled fraction times max_weight."""

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    def weight(self, layer: int) -> float:
        """λ of block `layer`, counted from 0."""
        distance = abs(layer - self.max_weight_position)
        if distance > self.min_weight_distance or self.max_weight == 0:
            return 0.0
        if self.min_weight_distance == 0:
            return self.max_weight
        return self.max_weight + distance / self.min_weight_distance * (self.min_weight - self.max_weight)

    def profile(self, layers: int) -> list[float]:
        """λ of all blocks."""
        return [self.weight(layer) for layer in range(layers)]
