"""A histogram over a fixed range, for neurons whose outliers leave an ordinary one with too few bins in the middle."""

from collections.abc import Iterator
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.grid import Binning
from ablation_lens.neurons.grid_counts import GridCounts
from ablation_lens.neurons.histogram import NeuronHistogram
from ablation_lens.neurons.rows import own_memory
from ablation_lens.sites import neuron_name


class TrimmedHistogram(NeuronHistogram):
    """A histogram over a fixed range per neuron, with counts of what lies below and above it.

    One outlier can make the bins of a `NeuronHistogram` wider than the body of the distribution; a second pass
    over the same values with this one resolves it. `minimum` and `maximum` are the ends of the range, which
    belong to it; quantiles that fall outside are NaN. Only histograms of one range add up.

    >>> low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> histogram = TrimmedHistogram(low, high, bins=4)
    >>> histogram.update(torch.tensor([-3.0, 0.25, 0.75, 1e9]).view(4, 1, 1, 1))
    >>> histogram.underflow.item(), histogram.counts((0, 0, 0)).tolist(), histogram.overflow.item()
    (1, [1, 1, 0, 0], 1)
    """

    _margin = 1

    def __init__(
        self,
        low: Float[Tensor, "layer head dim"],
        high: Float[Tensor, "layer head dim"],
        bins: int = 256,
        *,
        resolution: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if low.shape != high.shape:
            raise MismatchError(f"low has shape {tuple(low.shape)}, high {tuple(high.shape)}; expected the same shape.")
        self._allocate(low.shape, bins, resolution, device)
        low, high = low.to(device, torch.float64) + 0.0, high.to(device, torch.float64) + 0.0
        wrong = (~(low.isfinite() & high.isfinite() & (low <= high))).nonzero()
        if len(wrong):
            layer, head, dim = wrong[0].tolist()
            raise NonFiniteError(
                f"the range of {neuron_name(layer, head, dim)} is [{low[layer, head, dim]}, {high[layer, head, dim]}]; "
                "expected two finite ends in order. Take them from the quantiles of a histogram that has seen values."
            )
        with own_memory():
            for layer in range(self.shape[0]):
                self._place(layer, low[layer].flatten(), high[layer].flatten())

    @classmethod
    def around(cls, first: NeuronHistogram, shares: tuple[float, float] = (0.001, 0.999)) -> Self:
        """An empty one over the range between two quantiles of a first pass.

        >>> first = NeuronHistogram((1, 1, 1))
        >>> first.update(torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1e6])]).view(-1, 1, 1, 1))
        >>> bool(TrimmedHistogram.around(first).epsilon < first.epsilon)
        True
        """
        low, high = first.quantile(shares)
        return cls(low, high, first.bins, resolution=first.resolution, device=first.device)

    @property
    def underflow(self) -> Int64[Tensor, "layer head dim"]:
        """How many values lie below the range."""
        return self._counts[..., 0].clone()

    @property
    def overflow(self) -> Int64[Tensor, "layer head dim"]:
        """How many values lie above the range."""
        return self._counts[..., -1].clone()

    def _widen(self, layer: int, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]) -> None:
        """The range is fixed; what lies outside is counted as such."""

    def _binning(self, layer: int, values: torch.dtype) -> Binning:
        return Binning(self._grid(layer), self.bins, values, self.resolution, within=self._range(layer))

    def _require_like(self, other: GridCounts) -> None:
        super()._require_like(other)
        low, high = other._minimum.to(self.device), other._maximum.to(self.device)
        unlike = ((self._minimum != low) | (self._maximum != high)).nonzero()
        if len(unlike):
            place = tuple(unlike[0].tolist())
            mine, theirs = ([h._minimum[place].item(), h._maximum[place].item()] for h in (self, other))
            raise MismatchError(
                f"trimmed histograms of unlike ranges do not add up: {neuron_name(*place)} has {mine} and {theirs}; "
                "make both around the same first pass."
            )

    def _ordered(
        self, layer: int, cumulative: Int64[Tensor, "head dim stored"], index: Int64[Tensor, "head dim q"]
    ) -> Float[Tensor, "head dim q"]:
        inside = (index >= cumulative[..., :1]) & (index < cumulative[..., -2:-1])
        low, high = self._minimum[layer].unsqueeze(-1), self._maximum[layer].unsqueeze(-1)
        return self._within(layer, cumulative, index).clamp(low, high).masked_fill(~inside, torch.nan)

    def _flaws(self, total: Int64[Tensor, "layer head dim"]) -> Iterator[tuple[str, Bool[Tensor, "layer head dim"]]]:
        yield "no range", self._minimum == torch.inf
        yield from GridCounts._flaws(self, total)
