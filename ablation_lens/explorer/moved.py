"""How far neurons moved between two collections over the same neurons: of their means, and of everything."""

import torch
from jaxtyping import Float
from torch import Tensor

from ablation_lens.neurons.grid import RESOLUTIONS, Grid
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.statistics import ActivationStatistics

OVERLAP_BINS = 64
"""Most bins across both ranges. More would take the noise of few values for a difference."""


def moved_over_sigma(one: ActivationStatistics, two: ActivationStatistics) -> Float[Tensor, "layer head dim"]:
    """The distance of the two means, in units of σ: the root of the mean of both variances.

    Two constants have no σ: they are 0 apart where they are the same, and infinitely far where not.

    >>> one, two = (ActivationStatistics.of_values(torch.tensor(x).view(-1, 1, 1, 1)) for x in ([0.0, 2.0], [3.0, 5.0]))
    >>> moved_over_sigma(one, two).item()
    3.0
    """
    away = (one.mean - two.mean).abs()
    sigma = ((one.variance + two.variance) / 2).sqrt()
    return torch.where(away == 0, 0.0, away / sigma)


def overlap(one: NeuronHistogram, two: NeuronHistogram) -> Float[Tensor, "layer head dim"]:
    """The share of the two distributions that lies over each other: 1 for the same, 0 for two that never meet.

    >>> one, two = NeuronHistogram((1, 1, 1), bins=8), NeuronHistogram((1, 1, 1), bins=8)
    >>> one.update(torch.tensor([0.0, 1.0, 1.0, 4.0]).view(4, 1, 1, 1))
    >>> two.update(torch.tensor([0.0, 7.0]).view(2, 1, 1, 1))
    >>> overlap(one, two).item()
    0.25
    """
    both = one.to("cpu"), two.to("cpu")
    bins = min(OVERLAP_BINS, one.bins, two.bins)
    # The coarser of both: a grid finer than a histogram's own cannot be filled from it.
    resolution = min(one.resolution, two.resolution, key=lambda dtype: RESOLUTIONS[dtype])
    shares = torch.empty(one.shape, dtype=torch.float64)
    # A layer at a time, as the counts of all would be there twice.
    for layer in range(one.shape[0]):
        lows, highs = zip(*(each.ends(layer) for each in both), strict=True)
        common = Grid.fitting(torch.minimum(*lows), torch.maximum(*highs), bins, resolution)
        first, second = (
            each.grid(layer).rebin(each.counts(layer).flatten(0, 1), common, bins).double() for each in both
        )
        # Without values, 0 / 0 is NaN, and that is what is known.
        least = torch.minimum(first / first.sum(-1, keepdim=True), second / second.sum(-1, keepdim=True))
        shares[layer] = least.sum(-1).view(one.shape[1:])
    return shares
