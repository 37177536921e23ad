"""A histogram over a fixed range, for neurons whose outliers leave an ordinary one with too few bins in the middle."""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.grid import Counter, binning_of, quantiles, value_at
from ablation_lens.neurons.histogram import (
    NeuronHistogram,
    describe_counts,
    finite_range,
    not_finite,
    require_finite_ends,
    require_layers,
    require_like,
    require_rows_of,
    rows_for,
    shares,
)
from ablation_lens.neurons.rows import Rows, Scratch, own_memory
from ablation_lens.sites import neuron_name


class TrimmedHistogram:
    """Counts of the values within a fixed range per neuron, and of those below and above it.

    One outlier can make the bins of a `NeuronHistogram` wider than the body of the distribution; a second pass
    over the same values with this one resolves it. `inside` is an ordinary histogram of what lies in the range,
    except that its `minimum` and `maximum` are the ends of the range, which belong to it. Only histograms of one
    range add up.

    >>> low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> histogram = TrimmedHistogram(low, high, bins=4)
    >>> histogram.update(torch.tensor([-3.0, 0.25, 0.75, 1e9]).view(4, 1, 1, 1))
    >>> histogram.underflow.item(), histogram.inside.counts((0, 0, 0)).tolist(), histogram.overflow.item()
    (1, [1, 1, 0, 0], 1)
    """

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
        self.inside = NeuronHistogram(low.shape, bins, resolution=resolution, device=device)
        # + 0.0 makes -0.0 the 0.0 that ranges have everywhere else.
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
                self.inside.place(layer, low[layer].flatten(), high[layer].flatten())
            self.underflow: Int64[Tensor, "layer head dim"] = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self.overflow: Int64[Tensor, "layer head dim"] = torch.zeros_like(self.underflow)
        self._counter = Counter()
        self._range: tuple[Tensor, Tensor] | None = None

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
    def shape(self) -> tuple[int, int, int]:
        """`(layer, head, dim)`."""
        return self.inside.shape

    @property
    def bins(self) -> int:
        """Most bins per neuron."""
        return self.inside.bins

    @property
    def resolution(self) -> torch.dtype:
        """The dtype the values were computed in."""
        return self.inside.resolution

    @property
    def device(self) -> torch.device:
        """Where the counts are kept, and values are counted."""
        return self.inside.device

    @property
    def epsilon(self) -> Float[Tensor, "layer head dim"]:
        """The bin width of every neuron."""
        return self.inside.epsilon

    @property
    def total(self) -> Int64[Tensor, "layer head dim"]:
        """How many values each neuron has seen, those outside the range included."""
        return self.inside.total + self.underflow + self.overflow

    # ------------------------------------------------------------------ adding values

    def update(
        self, values: Float[Tensor, "*batch layer head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Count values of all layers, as `NeuronHistogram.update` does."""
        require_layers(values, self.shape)
        scratch = Scratch()
        layers = [
            rows_for(self.shape, self.device, values[..., layer, :, :], valid, scratch)
            for layer in range(self.shape[0])
        ]
        with own_memory():
            for layer, rows in enumerate(layers):  # all of them, before any is counted
                finite_range(layer, rows, self.shape)
        # Not with `layers`: they share one scratch memory, which now holds the last layer's values.
        for layer in range(self.shape[0]):
            self.update_layer(layer, values[..., layer, :, :], valid)

    def update_layer(
        self, layer: int, values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Count values of one layer, as a forward hook sees them."""
        self.add(layer, rows_for(self.shape, self.device, values, valid))

    def add(self, layer: int, rows: Rows) -> None:
        """Count values of one layer that are laid out already."""
        with own_memory():
            finite_range(layer, rows, self.shape)
            self._absorb(layer, rows)

    def add_layers(self, layers: slice, rows: Rows) -> None:
        """Count values of consecutive layers, as `NeuronHistogram.add_layers` does."""
        with own_memory():
            require_rows_of(rows, self.shape, layers)
            for known, seen, pick in zip(self._seen(), rows.range(), (torch.minimum, torch.maximum), strict=True):
                pick(known[layers].view(-1), seen, out=known[layers].view(-1))
            self._absorb(layers, rows)

    def all_finite(self) -> Bool[Tensor, ""]:
        """Whether all values of `add_layers` were finite, on the device."""
        return ~not_finite(*self._seen()).any()

    def require_finite(self) -> None:
        """Raise `NonFiniteError` where a value of `add_layers` was not finite."""
        require_finite_ends(*self._seen())

    def _seen(self) -> tuple[Float[Tensor, "layer head dim"], Float[Tensor, "layer head dim"]]:
        """The range of all values of `add_layers`, which is no part of the state."""
        if self._range is None:
            low = torch.full(self.shape, torch.inf, dtype=torch.float64, device=self.device)
            self._range = low, -low
        return self._range

    def _absorb(self, layers: int | slice, rows: Rows) -> None:
        within = self.inside.ends(layers)
        binning = binning_of(rows, self.inside.grid(layers), self.bins, self.resolution, within=within)
        counts = torch.zeros(rows.neurons, self.bins + 2, dtype=torch.int64, device=self.device)
        positive = self._counter.add(counts, rows, binning)
        below, held, above = counts[:, 0], counts[:, 1:-1], counts[:, -1]
        self.inside.add_counts(layers, held, positive_inside(positive, held.sum(1), above, *within))
        self.underflow[layers].view(-1).add_(below)
        self.overflow[layers].view(-1).add_(above)

    # ------------------------------------------------------------------ combining

    def merge(self, *others: Self) -> Self:
        """A new histogram that has seen the values of all; the arguments stay as they are."""
        for other in others:
            require_like(self, other)
            self._require_same_range(other)
        # All ranges are equal, so no bin moves.
        inside = self.inside.merge(*(other.inside for other in others))
        beyond = [[each.to(self.device) for each in (part.underflow, part.overflow)] for part in (self, *others)]
        return self._with(inside, *(torch.stack(parts).sum(0) for parts in zip(*beyond, strict=True)))

    def _require_same_range(self, other: Self) -> None:
        for layer in range(self.shape[0]):
            mine, theirs = torch.stack(self.inside.ends(layer)), torch.stack(other.inside.ends(layer))
            unlike = (mine != theirs.to(mine.device)).any(0).nonzero().flatten().tolist()
            if unlike:
                raise MismatchError(
                    f"trimmed histograms of unlike ranges do not add up: "
                    f"{neuron_name(layer, *divmod(unlike[0], self.shape[2]))} has {mine[:, unlike[0]].tolist()} and "
                    f"{theirs[:, unlike[0]].tolist()}; make both around the same first pass."
                )

    def copy(self) -> Self:
        """An independent copy, on the same device."""
        return self.to(self.device)

    def to(self, device: torch.device | str) -> Self:
        """An independent copy on `device`."""
        return self._with(self.inside.to(device), self.underflow.to(device), self.overflow.to(device))

    def coarsen(self, max_bins: int) -> Self:
        """A new histogram, equal to having counted the same values in `max_bins` bins."""
        return self._with(self.inside.coarsen(max_bins), self.underflow, self.overflow)

    def _with(self, inside: NeuronHistogram, underflow: Tensor, overflow: Tensor) -> Self:
        # Past the constructor, which asks whether the range is one: that of `inside` is.
        result = type(self).__new__(type(self))
        result.inside, result._counter, result._range = inside, Counter(), None
        with own_memory():
            result.underflow, result.overflow = underflow.clone(), overflow.clone()
        return result

    # ------------------------------------------------------------------ reading

    def quantile(self, q: float | Sequence[float]) -> Float[Tensor, "*q layer head dim"]:
        """As `NeuronHistogram.quantile`, of all values; NaN where it falls outside the range.

        >>> histogram = TrimmedHistogram(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        >>> histogram.update(torch.tensor([-2.0, 0.25, 0.5, 0.75, 5.0]).view(5, 1, 1, 1))
        >>> histogram.quantile([0.0, 0.5]).isnan().flatten().tolist()
        [True, False]
        """
        wanted = shares(q, self.device)
        with own_memory():
            layers = [self._quantiles(layer, wanted.flatten()) for layer in range(self.shape[0])]
        return torch.stack(layers, 1).view(*wanted.shape, *self.shape)

    def _quantiles(self, layer: int, wanted: Float[Tensor, " q"]) -> Float[Tensor, "q neuron"]:
        counts, grid = self.inside.counts(layer).flatten(0, 1), self.inside.grid(layer)
        low, high = (end.unsqueeze(-1) for end in self.inside.ends(layer))
        below, held = self.underflow[layer].view(-1, 1), counts.sum(-1, keepdim=True)
        zeros = self.inside.zeros_of(layer).flatten()

        def ordered(index: Int64[Tensor, "neuron q"]) -> Float[Tensor, "neuron q"]:
            # Ranks count from the smallest value of all, bins from the first inside.
            index = index - below
            known = (index >= 0) & (index < held)
            return value_at(counts, grid, zeros, index.clamp(min=0)).clamp(low, high).masked_fill(~known, torch.nan)

        return quantiles(wanted, self.total[layer].flatten(), ordered)

    def __repr__(self) -> str:
        return describe_counts(type(self).__name__, self.shape, self.bins, self.total)


def positive_inside(
    positive: Int64[Tensor, "*neurons"],
    inside: Int64[Tensor, "*neurons"],
    above: Int64[Tensor, "*neurons"],
    low: Float[Tensor, "*neurons"],
    high: Float[Tensor, "*neurons"],
) -> Int64[Tensor, "*neurons"]:
    """How many of `positive` values lie between two ends, where `inside` of all values do, and `above` them others.

    >>> ends = torch.tensor([-1.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, -1.0])
    >>> positive_inside(torch.tensor([5, 5, 5]), torch.tensor([6, 3, 4]), torch.tensor([2, 2, 7]), *ends).tolist()
    [3, 3, 0]
    """
    # Around 0, whatever is above the range is positive, and whatever is below it is not.
    return torch.where(low > 0, inside, torch.where(high < 0, 0, positive - above))
