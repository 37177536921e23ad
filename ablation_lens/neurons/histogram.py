"""The mergeable per-neuron histogram: exact counts on a dyadic grid, whatever the order, batches or machines.

Every neuron has its own bins of width ε = 2^k on the grid of multiples of ε, where k is the smallest exponent
for which the neuron's [min, max] fits in the wanted number of bins. When the range grows, neighbouring bins
merge pairwise, which loses nothing because the grids nest. So the state is a function of the multiset of values.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.grid import RESOLUTIONS, Binning, Grid, scaled_floor
from ablation_lens.neurons.grid_counts import GridCounts, dtype_name
from ablation_lens.neurons.rows import Rows, Scratch, own_memory
from ablation_lens.sites import neuron_name


class NeuronHistogram(GridCounts):
    """Histograms of all neurons of a site, `(layer, head, dim)`, each with its own bin width.

    `resolution` is the dtype the values were computed in: bins are no finer than its spacing at a neuron's
    largest magnitude. Histograms add up exactly with `merge`, and are equal bit for bit when the values are.

    >>> histogram = NeuronHistogram((1, 1, 2), bins=4)
    >>> histogram.update(torch.tensor([[0.1, -8.0], [0.2, 8.0], [0.9, 0.0]]).view(3, 1, 1, 2))
    >>> histogram
    NeuronHistogram(1 layer × 1 head × 2 dims, 4 bins, 3 values per neuron)
    >>> histogram.edges((0, 0, 0)).tolist(), histogram.counts((0, 0, 0)).tolist()
    ([0.0, 0.25, 0.5, 0.75, 1.0], [2, 0, 0, 1])
    """

    def __init__(
        self,
        shape: Sequence[int],
        bins: int = 256,
        *,
        resolution: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._allocate(shape, bins, resolution, device)

    # ------------------------------------------------------------------ adding values

    def update(
        self, values: Float[Tensor, "*batch layer head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Count values of all layers at the positions where `valid` is true (everywhere when None).

        NaN or infinity raises `NonFiniteError` and leaves every layer as it was.

        >>> histogram = NeuronHistogram((2, 1, 1))
        >>> histogram.update(torch.ones(5, 2, 1, 1), valid=torch.tensor([True, True, True, False, False]))
        >>> histogram.total.flatten().tolist()
        [3, 3]
        """
        if tuple(values.shape[-3:]) != self.shape:
            raise MismatchError(
                f"values have shape {tuple(values.shape)}; expected (…, layer, head, dim) = (…, {self.shape})."
            )
        with own_memory():
            scratch = Scratch()  # so only one layer is laid out at a time

            def columns(layer: int) -> Rows:
                return self._columns(values[..., layer, :, :], valid, scratch)

            ranges = [self._range_of(layer, columns(layer)) for layer in range(self.shape[0])]
            for layer, (low, high) in enumerate(ranges):
                self._absorb(layer, columns(layer), low, high)

    def update_layer(
        self, layer: int, values: Float[Tensor, "*batch head dim"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> None:
        """Count values of one layer, as a forward hook sees them.

        >>> histogram = NeuronHistogram((2, 1, 1))
        >>> histogram.update_layer(1, torch.ones(4, 7, 1, 1))
        >>> histogram.total.flatten().tolist()
        [0, 28]
        """
        with own_memory():
            self.add(layer, self._columns(values, valid))

    def add(self, layer: int, columns: Rows) -> None:
        """Count values of one layer that are laid out already, for whoever needs them for more than counting."""
        with own_memory():
            self._absorb(layer, columns, *self._range_of(layer, columns))

    def _columns(
        self,
        values: Float[Tensor, "*batch head dim"],
        valid: Bool[Tensor, "*batch"] | None,
        scratch: Scratch | None = None,
    ) -> Rows:
        if tuple(values.shape[-2:]) != self.shape[1:] or values.dtype not in RESOLUTIONS:
            raise MismatchError(
                f"values are {values.dtype} of shape {tuple(values.shape)}; expected a floating dtype and "
                f"(…, head, dim) = (…, {self.shape[1]}, {self.shape[2]})."
            )
        return Rows(values.to(self.device), None if valid is None else valid.to(self.device), scratch)

    def _range_of(self, layer: int, columns: Rows) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
        """The range of the values; everything that can be wrong with them is found here."""
        if not 0 <= layer < self.shape[0]:
            raise MismatchError(
                f"layer {layer} does not exist: this histogram has {self.shape[0]} layers, counted from 0."
            )
        if columns.shape != self.shape[1:]:
            raise MismatchError(f"columns are of {columns.shape} (head, dim); expected {self.shape[1:]}.")
        low, high = columns.range()
        # NaN propagates through both ends. Both ends are infinite the other way round when there are no values.
        bad = (low.isnan() | (low == -torch.inf) | (high == torch.inf)).nonzero()
        if len(bad):
            first = int(bad[0])
            value = low[first].item() if not math.isfinite(low[first].item()) else high[first].item()
            raise NonFiniteError(
                f"{neuron_name(layer, *divmod(first, self.shape[2]))} is {value} somewhere in this batch; statistics "
                "count finite values only, so nothing of it was counted. Look for overflow: float16 often needs "
                "bfloat16 or float32."
            )
        return low, high

    def _absorb(self, layer: int, columns: Rows, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]) -> None:
        self._widen(layer, low, high)
        binning = self._binnings[layer]
        if binning is None or binning.values != columns.dtype:
            binning = self._binnings[layer] = self._binning(layer, columns.dtype)
        self._counter.add(self._flat_counts(layer), columns, binning)

    def _binning(self, layer: int, values: torch.dtype) -> Binning:
        # Nothing but zeros counts alike on any grid, and their own (2^-149) would need float64 for the whole layer.
        dead = (self._minimum[layer] == 0) & (self._maximum[layer] == 0)
        grid = self._grid(layer)
        grid = Grid(grid.exponent.masked_fill(dead.flatten(), 0), grid.offset)
        return Binning(grid, self.bins, values, self.resolution)

    def _widen(self, layer: int, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]) -> None:
        """Make room for values between `low` and `high`."""
        known_low, known_high = self._range(layer)
        low, high = torch.minimum(low, known_low), torch.maximum(high, known_high)
        if torch.equal(low, known_low) and torch.equal(high, known_high):
            return
        old = Grid(self._exponent[layer].flatten().clone(), self._offset[layer].flatten().clone())
        self._place(layer, low, high)
        new, counts = self._grid(layer), self._flat_counts(layer)
        moved = ((old.exponent != new.exponent) | (old.offset != new.offset)).nonzero().flatten()
        counts[moved] = old[moved].rebin(counts[moved], new[moved], self.bins)

    # ------------------------------------------------------------------ combining

    def merge(self, *others: Self) -> Self:
        """A new histogram that has seen the values of all; the arguments stay as they are.

        >>> one, two = NeuronHistogram((1, 1, 1)), NeuronHistogram((1, 1, 1))
        >>> one.update(torch.zeros(3, 1, 1, 1)); two.update(torch.ones(4, 1, 1, 1))
        >>> one.merge(two).total.item(), one.total.item()
        (7, 3)
        """
        result = self.copy()
        for other in others:
            result.merge_(other)
        return result

    def merge_(self, other: Self) -> None:
        """Add the values another histogram has seen to this one, in place.

        >>> one, two = NeuronHistogram((1, 1, 1)), NeuronHistogram((1, 1, 1), bins=100)
        >>> one.merge_(two)
        Traceback (most recent call last):
        ablation_lens.errors.MismatchError: histograms of unlike bins do not add up: 256 and 100; coarsen the finer one.
        """
        self._require_like(other)
        other = other if other.device == self.device else other.to(self.device)
        with own_memory():
            for layer in range(self.shape[0]):
                self._widen(layer, *other._range(layer))
                counts, theirs, ours = other._flat_counts(layer), other._grid(layer), self._grid(layer)
                self._flat_counts(layer).add_(counts if theirs.equals(ours) else theirs.rebin(counts, ours, self.bins))

    def _require_like(self, other: GridCounts) -> None:
        for what, mine, theirs, advice in (
            ("kind", type(self).__name__, type(other).__name__, "merge like with like"),
            ("shape", self.shape, other.shape, "collect both from the same model and site"),
            ("bins", self.bins, other.bins, "coarsen the finer one"),
            ("resolution", dtype_name(self.resolution), dtype_name(other.resolution), "collect both in the same dtype"),
        ):
            if mine != theirs:
                raise MismatchError(f"histograms of unlike {what} do not add up: {mine} and {theirs}; {advice}.")

    def copy(self) -> Self:
        """An independent copy, on the same device.

        >>> NeuronHistogram((1, 2, 3)).copy().shape
        (1, 2, 3)
        """
        return self.to(self.device)

    def to(self, device: torch.device | str) -> Self:
        """An independent copy on `device`.

        >>> NeuronHistogram((1, 2, 3)).to("cpu").device
        device(type='cpu')
        """
        result = self._like(self.bins, torch.device(device))
        with own_memory():
            result._counts.copy_(self._counts)
        return result

    def coarsen(self, max_bins: int) -> Self:
        """A new histogram, equal to having collected the same values with `max_bins` bins.

        >>> histogram = NeuronHistogram((1, 1, 1), bins=256)
        >>> histogram.update(torch.arange(200.0).view(200, 1, 1, 1))
        >>> histogram.coarsen(4).counts((0, 0, 0)).tolist()
        [64, 64, 64, 8]
        """
        if max_bins > self.bins:
            raise MismatchError(
                f"max_bins={max_bins}, but this histogram has {self.bins} bins; it can only be made coarser."
            )
        result = self._like(max_bins, self.device)
        inner, outer = self._inner(self._counts), result._inner(result._counts)
        with own_memory():
            if self._margin:
                result._counts[..., 0], result._counts[..., -1] = self._counts[..., 0], self._counts[..., -1]
            for layer in range(self.shape[0]):
                mine = inner[layer].reshape(-1, self.bins)
                outer[layer] = self._grid(layer).rebin(mine, result._grid(layer), max_bins).view(*self.shape[1:], -1)
        return result

    def _like(self, bins: int, device: torch.device) -> Self:
        """No counts yet, but the same range on its grid of `bins` bins."""
        result = object.__new__(type(self))
        result._allocate(self.shape, bins, self.resolution, device)
        with own_memory():
            for layer in range(self.shape[0]):
                low, high = self._range(layer)
                result._place(layer, low.to(device), high.to(device))
        return result

    def _flaws(self, total: Int64[Tensor, "layer head dim"]) -> Iterator[tuple[str, Bool[Tensor, "layer head dim"]]]:
        yield from super()._flaws(total)
        low, high = self._minimum, self._maximum
        empty = total == 0
        yield "a range without values, or values without a range", empty != (low > high)
        yield "one value, but a minimum below its maximum", (total == 1) & (low < high)
        last = (scaled_floor(high, self._exponent).masked_fill(empty, 0)).long() - self._offset
        ends = self._counts.gather(-1, torch.stack([torch.zeros_like(last), last], -1))
        yield "no value in the bin of its minimum or maximum", ~empty & (ends == 0).any(-1)
        beyond = torch.arange(self.bins, device=self.device) > last.unsqueeze(-1)
        yield "values beyond its maximum", (self._counts * beyond > 0).any(-1)
