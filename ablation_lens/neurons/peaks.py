"""Where a neuron's distribution is highest: the paper's peak, and the top of a smooth density.

Also how this, `shapes` and `centers` see statistics: `NeuronStatistics`.
"""

import math
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError
from ablation_lens.neurons.grid import Grid, scale_by
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.trimmed import TrimmedHistogram
from ablation_lens.sites import neuron_name

PEAK_BINS = 128
"""Most bins per neuron that the paper's peak is looked for in."""


class NeuronStatistics(Protocol):
    """What centers and shapes read of collected statistics; `ActivationStatistics` is one."""

    @property
    def histogram(self) -> NeuronHistogram:
        """The values of every neuron, counted."""

    @property
    def trimmed(self) -> TrimmedHistogram | None:
        """The middle of every neuron's range, counted by a second pass."""

    @property
    def mean(self) -> Float64[Tensor, "layer head dim"]:
        """The mean of every neuron, exact."""

    @property
    def variance(self) -> Float64[Tensor, "layer head dim"]:
        """The variance of every neuron, exact."""


def require_values(histogram: NeuronHistogram) -> None:
    """Raise for a neuron nothing was counted for: it has no shape and no center."""
    empty = (histogram.total == 0).nonzero()
    if len(empty):
        raise MismatchError(
            f"{neuron_name(*empty[0].tolist())} has seen no values, so it has no shape and no center; collect over "
            "some text (or images) first."
        )


# ---------------------------------------------------------------------- the paper's peak


def naive_peak(
    histogram: NeuronHistogram, bins: int = PEAK_BINS, epsilon: float | None = None
) -> Float64[Tensor, "layer head dim"]:
    """The middle of the fullest bin, the lower of equals, after merging to at most `bins` bins per neuron.

    With `epsilon`, bins are instead merged to the largest power of two that does not exceed it. A value that repeats
    is its own bin: a constant neuron's, and 0 where more values are exactly 0 than any bin has others.

    >>> histogram = NeuronHistogram((1, 1, 1))
    >>> histogram.update(torch.tensor([0.0, 3.0, 3.25, 3.5, 100.0]).view(5, 1, 1, 1))
    >>> naive_peak(histogram).item(), naive_peak(histogram, epsilon=5.0).item()
    (3.5, 2.0)
    """
    low, high = histogram.minimum.cpu(), histogram.maximum.cpu()
    exponent, offset = histogram.exponent.cpu(), histogram.offset.cpu()
    layers = []
    for layer in range(histogram.shape[0]):
        grid = Grid(exponent[layer], offset[layer])
        wanted = Grid.fitting(low[layer], high[layer], min(bins, histogram.bins), histogram.resolution)
        if epsilon is not None:
            # frexp gives ⌊log2⌋ + 1 exactly; `math.log2` may round up to the next whole number.
            coarser = grid.exponent.clamp(min=math.frexp(epsilon)[1] - 1)
            wanted = Grid(coarser, grid.offset >> (coarser - grid.exponent).clamp(max=62))
        counts = grid.rebin(histogram.counts(layer).cpu(), wanted, histogram.bins)
        # argmax gives the first of equals, which is the lower bin.
        middle = scale_by((wanted.offset + counts.argmax(-1)).double() + 0.5, wanted.exponent)
        layers.append(middle.masked_fill(zeros_lead(counts, wanted, histogram.zeros_of(layer).cpu()), 0.0))
    return torch.where(low == high, low, torch.stack(layers))


def zeros_lead(
    counts: Int64[Tensor, "*neurons bin"], grid: Grid, zeros: Int64[Tensor, "*neurons"]
) -> Bool[Tensor, "*neurons"]:
    """Where more values are exactly 0 than any bin has others: no bin is as full as that one number.

    >>> grid = Grid(torch.tensor([0, 0]), torch.tensor([-1, -1]))
    >>> zeros_lead(torch.tensor([[3, 6], [4, 5]]), grid, torch.tensor([4, 4])).tolist()
    [True, False]
    """
    return grid.without(counts, zeros).amax(-1) < zeros


def zeros_lead_in(histogram: NeuronHistogram) -> Bool[Tensor, "layer head dim"]:
    """`zeros_lead` among the bins as collected, on the CPU."""
    exponent, offset = histogram.exponent.cpu(), histogram.offset.cpu()
    return torch.stack(
        [
            zeros_lead(
                histogram.counts(layer).cpu(), Grid(exponent[layer], offset[layer]), histogram.zeros_of(layer).cpu()
            )
            for layer in range(histogram.shape[0])
        ]
    )


def at_bins(histogram: NeuronHistogram, index: Int64[Tensor, "layer head dim"]) -> Float64[Tensor, "layer head dim"]:
    """The middle of one bin per neuron; of a constant neuron the constant, which lies at its bin's edge."""
    low, high = histogram.minimum.cpu(), histogram.maximum.cpu()
    return torch.where(low == high, low, histogram.bin_center(index.to(histogram.device)).cpu())


# ---------------------------------------------------------------------- a smooth density


def kernel_width(
    statistics: NeuronStatistics, order: int = 0, quartiles: Float64[Tensor, "2 layer head dim"] | None = None
) -> Float64[Tensor, "layer head dim"]:
    """Standard deviation, in bins, of the Gaussian that is best to smooth a normal neuron's counts with.

    `order` 0 is best for the density (Silverman's rule), 1 for its slope, and so for where the slope is zero. The
    spread it goes by is the smaller of σ and IQR/1.34. At most an eighth of all bins, and at least one: rounding to
    bfloat16 leaves a bin a quarter empty where its spacing doubles, which would pass for a valley. Who has
    the quartiles already gives them.
    """
    factor, power = ((0.9, -1 / 5), (0.97, -1 / 7))[order]
    histogram = statistics.histogram
    if quartiles is None:
        quartiles = histogram.quantile([0.25, 0.75]).cpu()
    # The IQR of a normal distribution is 1.349 σ. Far values widen σ and hardly the IQR.
    spread = torch.minimum(statistics.variance.double().cpu().sqrt(), (quartiles[1] - quartiles[0]) / 1.34)
    width = factor * spread * histogram.total.cpu().double() ** power / histogram.epsilon.cpu()
    return width.clamp(1, histogram.bins / 8)


def smooth(counts: Int64[Tensor, "*neurons bin"], width: Float[Tensor, "*neurons"]) -> Float64[Tensor, "*neurons bin"]:
    """Counts averaged under a Gaussian of standard deviation `width` bins, normalised at the ends of the range.

    The Gaussian is Lindeberg's discrete one: it is never negative and never makes a peak that was not there.
    Bins above the highest value are outside the range, and zero.

    >>> smooth(torch.tensor([[8, 8, 8, 0], [0, 4, 0, 4]]), torch.tensor([1.0, 0.0])).round().tolist()
    [[8.0, 8.0, 8.0, 0.0], [0.0, 4.0, 0.0, 4.0]]
    """
    bins = counts.shape[-1]
    place = torch.arange(bins)
    inside = place <= (place * (counts > 0)).amax(-1, keepdim=True)
    # So much longer that what runs over one end does not come back at the other: nine widths and sixteen bins away, a
    # Gaussian has 1e-17 of its weight. Of small factors, which make an FFT fast.
    length = min(2 * bins, -(-(bins + 16 + math.ceil(9 * float(width.max()))) // 64) * 64)
    both = torch.zeros(2, *counts.shape[:-1], length, dtype=torch.float64)
    both[0, ..., :bins], both[1, ..., :bins] = counts, inside
    spectrum = torch.fft.rfft(both)
    # The transform of the discrete Gaussian e^-t I_n(t), t = width²: no Bessel functions, no cut-off to choose.
    angle = 2 * math.pi * torch.fft.rfftfreq(length, dtype=torch.float64)
    transfer = (width.double().unsqueeze(-1).square() * (angle.cos() - 1)).exp_()
    torch.view_as_real(spectrum).mul_(transfer.unsqueeze(-1))  # a real factor; as a complex one it is slower
    averaged: Tensor = torch.fft.irfft(spectrum, length)[..., :bins]
    # The FFT rounds, so an empty bin may come out below 0. Outside the range the quotient may be 0/0.
    return (averaged[0] / averaged[1]).clamp_(min=0).masked_fill_(~inside, 0)


def highest(heights: Float[Tensor, "*neurons bin"]) -> Int64[Tensor, "*neurons"]:
    """The lowest bin whose height is the greatest, up to rounding in the smoothing."""
    # As bytes: torch has no argmax of booleans.
    return (heights >= heights.amax(-1, keepdim=True) * (1 - 1e-9)).byte().argmax(-1)
