"""A self-organising map of residuals: its neurons give several directions of refusing (Piras et al., arXiv 2511.08379).

As the authors' code trains it (pralab/som-refusal-directions, with MiniSom): a hexagonal grid that starts at samples;
in each iteration a sample x is drawn, and every neuron moves by η·h·(x - w), where h is a Gaussian of its distance on
the grid from the neuron nearest to x. η and the Gaussian's width σ fall as 1/(1 + 2t/T). Here the maps of all layers
see the same samples in the same order, and are trained at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bulwark.abliteration.settings import SomSettings

_ROWS_APART = math.sqrt(3) / 2  # of hexagons whose centres in a row are 1 apart


def trained(samples: Tensor, settings: SomSettings, seed: int = 0) -> Tensor:
    """The neurons of a map per layer, [layers, neurons, hidden], the most often hit first.

    samples: [n, layers, hidden]. A neuron that is nearest to none of the samples is a row of zeros, and last. seed: of
    the samples that it starts at and sees.
    """
    generator = torch.Generator().manual_seed(seed)
    places = grid(settings.rows, settings.columns)
    apart = (places[:, None] - places[None]).square().sum(-1)  # squared, [neurons, neurons]
    count = len(samples)
    neurons = samples[torch.randint(count, (len(places),), generator=generator)].transpose(0, 1).double().clone()
    layers = torch.arange(neurons.shape[0])
    drawn = torch.randint(count, (settings.iterations,), generator=generator).tolist()
    for step, sample in enumerate(drawn):
        fallen = 1 + 2 * step / settings.iterations
        width, rate = settings.sigma / fallen, settings.learning_rate / fallen
        away = samples[sample].double()[:, None] - neurons
        nearest = away.square().sum(-1).argmin(1)
        near = torch.exp(-apart[nearest] / (2 * width**2))  # [layers, neurons]
        neurons += rate * near[..., None] * away
    hits = torch.zeros(neurons.shape[:2], dtype=torch.long)
    for sample in samples:
        hits[layers, (sample.double()[:, None] - neurons).square().sum(-1).argmin(1)] += 1
    order = hits.argsort(dim=1, descending=True, stable=True)
    used = hits.gather(1, order) > 0
    return neurons.gather(1, order[..., None].expand_as(neurons)) * used[..., None]


def grid(rows: int, columns: int) -> Tensor:
    """Where the neurons lie: centres of hexagons, [rows · columns, 2]; every second row is half a neuron further on."""
    return torch.tensor(
        [(column + 0.5 * (row % 2), row * _ROWS_APART) for row in range(rows) for column in range(columns)],
        dtype=torch.float64,
    )
