"""The mergeable per-neuron histogram: exact counts on a dyadic grid, whatever the order, batches or machines.

Every neuron has its own bins of width ε = 2^k on the grid of multiples of ε, where k is the smallest exponent
for which the neuron's [min, max] fits in the wanted number of bins. When the range grows, neighbouring bins
merge pairwise, which loses nothing because the grids nest. So the state is a function of the multiset of values.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import MismatchError, NonFiniteError
from ablation_lens.neurons.grid import RESOLUTIONS, Binning, Counter, Grid, binning_of, quantiles, scale_by, value_at
from ablation_lens.neurons.rows import Rows, Scratch, own_memory
from ablation_lens.sites import neuron_name

RESOLUTION_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in RESOLUTIONS}


class NeuronHistogram:
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
        if len(shape) != 3 or min(shape) < 1:
            raise MismatchError(
                f"shape {tuple(shape)} is not a site's shape; expected three sizes, (layer, head, dim)."
            )
        if not 2 <= bins <= 2**16:
            raise MismatchError(f"bins={bins}, but a histogram has 2 to 65536 bins; leave it out for 256.")
        if resolution not in RESOLUTIONS:
            raise MismatchError(
                f"resolution is {resolution}; expected a dtype of activations: {', '.join(RESOLUTION_NAMES)}."
            )
        self.shape = (shape[0], shape[1], shape[2])
        self.bins = bins
        self.resolution = resolution
        with own_memory():
            self._counts = torch.zeros(*self.shape, bins, dtype=torch.int64, device=device)
            self._positive = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self._exponent = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self._offset = torch.zeros_like(self._exponent)
            self._minimum = torch.full(self.shape, torch.inf, dtype=torch.float64, device=device)
            self._maximum = -self._minimum  # inf, -inf: the empty range, which any value replaces
        self._binnings: dict[int, Binning] = {}
        self._counter = Counter()

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, not a copy: what a file holds."""
        return {
            "counts": self._counts,
            "positive": self._positive,
            "exponent": self._exponent,
            "offset": self._offset,
            "minimum": self._minimum,
            "maximum": self._maximum,
        }

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
        require_layers(values, self.shape)
        with own_memory():
            scratch = Scratch()  # so only one layer is laid out at a time

            def rows(layer: int) -> Rows:
                return rows_for(self.shape, self.device, values[..., layer, :, :], valid, scratch)

            # All layers before any is counted, or a NaN in the last one would leave the first ones changed.
            # Rows are made twice: the next layer takes the scratch memory of the one before.
            ranges = [finite_range(layer, rows(layer), self.shape) for layer in range(self.shape[0])]
            for layer, (low, high) in enumerate(ranges):
                self._absorb(layer, rows(layer), low, high)

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
            self.add(layer, rows_for(self.shape, self.device, values, valid))

    def add(self, layer: int, rows: Rows) -> None:
        """Count values of one layer that are laid out already, for whoever needs them for more than counting."""
        with own_memory():
            self._absorb(layer, rows, *finite_range(layer, rows, self.shape))

    def add_layers(self, layers: slice, rows: Rows) -> None:
        """Count values of consecutive layers, `[token (layer head) dim]`, without waiting for the device they are on.

        So nothing is refused: after NaN or infinity the counts mean nothing, and `require_finite` raises.

        >>> histogram = NeuronHistogram((3, 1, 1))
        >>> histogram.add_layers(slice(1, 3), Rows(torch.ones(5, 2, 1)))
        >>> histogram.total.flatten().tolist(), histogram.all_finite().item()
        ([0, 5, 5], True)
        """
        with own_memory():
            require_rows_of(rows, self.shape, layers)
            self._absorb(layers, rows, *rows.range())

    def all_finite(self) -> Bool[Tensor, ""]:
        """Whether all values of `add_layers` were finite, on the device."""
        return ~not_finite(self._minimum, self._maximum).any()

    def require_finite(self) -> None:
        """Raise `NonFiniteError` where a value of `add_layers` was not finite."""
        require_finite_ends(self._minimum, self._maximum)

    def add_counts(
        self, layers: int | slice, counts: Int64[Tensor, "neuron bin"], positive: Int64[Tensor, " neuron"]
    ) -> None:
        """Add counts that are on this histogram's own grid, `positive` of them of values above 0."""
        self._flat_counts(layers).add_(counts)
        self._positive[layers].view(-1).add_(positive)

    def _absorb(
        self, layers: int | slice, rows: Rows, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]
    ) -> None:
        # First, because it drops the binning that was made for the old grid.
        self._widen(layers, low, high, asking=rows.turned)
        binning = self._binnings.get(layers) if isinstance(layers, int) else None
        if binning is None or binning.values != rows.dtype:
            binning = self._binning(layers, rows)
        if rows.turned and isinstance(layers, int):
            self._binnings[layers] = binning
        self._positive[layers].view(-1).add_(self._counter.add(self._flat_counts(layers), rows, binning))

    def _binning(self, layers: int | slice, rows: Rows) -> Binning:
        grid = self.grid(layers)
        if rows.turned:
            # Nothing but zeros counts alike on any grid, and their own (2^-149) would need float64 for the whole layer.
            dead = (self._minimum[layers] == 0) & (self._maximum[layers] == 0)
            grid = Grid(grid.exponent.masked_fill(dead.flatten(), 0), grid.offset)
        return binning_of(rows, grid, self.bins, self.resolution)

    def _widen(
        self,
        layers: int | slice,
        low: Float[Tensor, " neuron"],
        high: Float[Tensor, " neuron"],
        *,
        asking: bool = True,
    ) -> None:
        """Make room for values between `low` and `high`; `asking` spares what did not change."""
        known_low, known_high = self.ends(layers)
        low, high = torch.minimum(low, known_low), torch.maximum(high, known_high)
        if asking and torch.equal(low, known_low) and torch.equal(high, known_high):
            return
        # Clones: `flatten` gives views, and `place` writes into what they show.
        old = Grid(self._exponent[layers].flatten().clone(), self._offset[layers].flatten().clone())
        self.place(layers, low, high)
        new, counts = self.grid(layers), self._flat_counts(layers)
        if not asking:
            counts.copy_(old.rebin(counts, new, self.bins))
            return
        moved = ((old.exponent != new.exponent) | (old.offset != new.offset)).nonzero().flatten()
        counts[moved] = old[moved].rebin(counts[moved], new[moved], self.bins)

    def place(self, layers: int | slice, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]) -> None:
        """Set the range of a layer that has no counts yet, or of some, and with it the grid."""
        grid = Grid.fitting(low, high, self.bins, self.resolution)
        for state, part in (
            (self._minimum, low),
            (self._maximum, high),
            (self._exponent, grid.exponent),
            (self._offset, grid.offset),
        ):
            state[layers].view(-1).copy_(part)
        # They hold the scales and offsets of old grids.
        if isinstance(layers, int):
            self._binnings.pop(layers, None)
        else:
            self._binnings.clear()

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
        require_like(self, other)
        other = other if other.device == self.device else other.to(self.device)
        with own_memory():
            for layer in range(self.shape[0]):
                self._widen(layer, *other.ends(layer))
                counts, theirs, ours = other._flat_counts(layer), other.grid(layer), self.grid(layer)
                moved = counts if theirs.equals(ours) else theirs.rebin(counts, ours, self.bins)
                self.add_counts(layer, moved, other._positive[layer].flatten())

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
            result._positive.copy_(self._positive)
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
        with own_memory():
            for layer in range(self.shape[0]):
                merged = self.grid(layer).rebin(self._flat_counts(layer), result.grid(layer), max_bins)
                result.add_counts(layer, merged, self._positive[layer].flatten())
        return result

    def _like(self, bins: int, device: torch.device) -> Self:
        """No counts yet, but the same range on its grid of `bins` bins."""
        result = type(self)(self.shape, bins, resolution=self.resolution, device=device)
        with own_memory():
            for layer in range(self.shape[0]):
                low, high = self.ends(layer)
                # The grid follows from range, bins and resolution alone, so it is computed, not copied.
                result.place(layer, low.to(device), high.to(device))
        return result

    # ------------------------------------------------------------------ reading

    @property
    def device(self) -> torch.device:
        """Where the counts are kept, and values are counted."""
        return self._counts.device

    @property
    def total(self) -> Int64[Tensor, "layer head dim"]:
        """How many values each neuron has seen."""
        return self._counts.sum(-1)

    @property
    def positive(self) -> Int64[Tensor, "layer head dim"]:
        """How many values of each neuron are above 0."""
        return self._positive.clone()

    @property
    def zeros(self) -> Int64[Tensor, "layer head dim"]:
        """How many values of each neuron are exactly 0, as a ReLU's are; -0.0 is 0.

        >>> histogram = NeuronHistogram((1, 1, 1), bins=2)
        >>> histogram.update(torch.tensor([0.0, -0.0, 1e-30, 0.0, -1.0]).view(5, 1, 1, 1))
        >>> histogram.counts((0, 0, 0)).tolist(), histogram.zeros.item()
        ([1, 4], 3)
        """
        return torch.stack([self.zeros_of(layer) for layer in range(self.shape[0])])

    def zeros_of(self, layer: int) -> Int64[Tensor, "head dim"]:
        """`zeros` of one layer."""
        # What is neither below 0, which the bins tell, nor above it.
        counts = self._counts[layer]
        negative = Grid(self._exponent[layer], self._offset[layer]).below_zero(counts)
        return counts.sum(-1) - negative - self._positive[layer]

    @property
    def exponent(self) -> Int64[Tensor, "layer head dim"]:
        """k of every neuron: its bins are 2^k wide."""
        return self._exponent.clone()

    @property
    def offset(self) -> Int64[Tensor, "layer head dim"]:
        """o of every neuron: its first bin starts at o·2^k."""
        return self._offset.clone()

    @property
    def epsilon(self) -> Float[Tensor, "layer head dim"]:
        """The bin width of every neuron; NaN where nothing was counted."""
        return self._known(scale_by(torch.ones_like(self._minimum), self._exponent))

    @property
    def minimum(self) -> Float[Tensor, "layer head dim"]:
        """The smallest value of every neuron, exact; NaN where nothing was counted."""
        return self._known(self._minimum)

    @property
    def maximum(self) -> Float[Tensor, "layer head dim"]:
        """The largest value of every neuron, exact; NaN where nothing was counted."""
        return self._known(self._maximum)

    def _known(self, values: Float[Tensor, "layer head dim"]) -> Float[Tensor, "layer head dim"]:
        return values.masked_fill(self._minimum > self._maximum, torch.nan)

    def grid(self, layers: int | slice) -> Grid:
        """Where the bins of the neurons of a layer lie, or of some layers."""
        return Grid(self._exponent[layers].flatten(), self._offset[layers].flatten())

    def ends(self, layers: int | slice) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
        """The smallest and largest value of these neurons; `inf, -inf` where nothing was counted."""
        return self._minimum[layers].flatten(), self._maximum[layers].flatten()

    def _flat_counts(self, layers: int | slice) -> Int64[Tensor, "neuron bin"]:
        return self._counts[layers].view(-1, self.bins)

    def counts(self, neuron: tuple[int, ...] | int = ()) -> Int64[Tensor, "*rest bin"]:
        """The counts of a neuron `(layer, head, dim)`, of a layer, or of all neurons; a copy.

        >>> NeuronHistogram((2, 3, 4), bins=8).counts(1).shape
        torch.Size([3, 4, 8])
        """
        return self._counts[self._checked(neuron)].clone()

    def edges(self, neuron: tuple[int, ...] | int = ()) -> Float[Tensor, "*rest edge"]:
        """The edges of the bins, one more than bins, of a neuron, of a layer, or of all neurons.

        >>> histogram = NeuronHistogram((1, 1, 1), bins=2)
        >>> histogram.update(torch.tensor([0.0, 1.5]).view(2, 1, 1, 1))
        >>> histogram.edges((0, 0, 0)).tolist()
        [0.0, 1.0, 2.0]
        """
        which = self._checked(neuron)
        cells = self._offset[which].unsqueeze(-1) + torch.arange(self.bins + 1, device=self.device)
        edges = scale_by(cells, self._exponent[which].unsqueeze(-1))
        return edges.masked_fill((self._minimum > self._maximum)[which].unsqueeze(-1), torch.nan)

    def bin_center(self, index: Int64[Tensor, "*many layer head dim"]) -> Float[Tensor, "*many layer head dim"]:
        """The middle of one bin per neuron: with the argmax of the counts, the paper's peak.

        >>> histogram = NeuronHistogram((1, 1, 1), bins=4)
        >>> histogram.update(torch.tensor([0.0, 2.5, 2.75, 3.5]).view(4, 1, 1, 1))
        >>> histogram.bin_center(histogram.counts().argmax(-1)).item()
        2.5
        """
        return self._known(scale_by((self._offset + index).double() + 0.5, self._exponent))

    def quantile(self, q: float | Sequence[float]) -> Float[Tensor, "*q layer head dim"]:
        """The value below which a share `q` of a neuron's values lies, within one ε of NumPy's answer.

        The values of a bin are taken to lie evenly in it; minimum, maximum and values of 0 are exact, and between two
        values NumPy's linear interpolation applies. NaN where nothing was counted.

        >>> histogram = NeuronHistogram((1, 1, 1))
        >>> histogram.update(torch.arange(101.0).view(101, 1, 1, 1))
        >>> histogram.quantile([0.0, 0.25, 1.0]).flatten().tolist()
        [0.0, 25.25, 100.0]
        """
        wanted = shares(q, self.device)
        with own_memory():
            layers = [self._quantiles(layer, wanted.flatten()) for layer in range(self.shape[0])]
        return torch.stack(layers, 1).view(*wanted.shape, *self.shape)

    def _quantiles(self, layer: int, wanted: Float[Tensor, " q"]) -> Float[Tensor, "q neuron"]:
        counts, grid = self._flat_counts(layer), self.grid(layer)
        low, high = (end.unsqueeze(-1) for end in self.ends(layer))
        total, zeros = counts.sum(-1), self.zeros_of(layer).flatten()

        def ordered(index: Int64[Tensor, "neuron q"]) -> Float[Tensor, "neuron q"]:
            # Bins reach beyond the smallest and the largest value, which are known exactly.
            inside = value_at(counts, grid, zeros, index).clamp(low, high)
            return torch.where(index == 0, low, torch.where(index == total.unsqueeze(-1) - 1, high, inside))

        return quantiles(wanted, total, ordered)

    def _checked(self, neuron: tuple[int, ...] | int) -> tuple[int, ...]:
        place = (neuron,) if isinstance(neuron, int) else tuple(neuron)
        # Negative numbers are refused: tensors would take them, and count from the end.
        if len(place) > 3 or not all(0 <= at < size for at, size in zip(place, self.shape, strict=False)):
            raise MismatchError(
                f"{place} is not a neuron or layer here: shape is {self.shape} (layer, head, dim), counted from 0."
            )
        return place

    def __repr__(self) -> str:
        return describe_counts(type(self).__name__, self.shape, self.bins, self.total)


# ---------------------------------------------------------------------- shared with trimmed histograms


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` → `float32`."""
    return str(dtype).removeprefix("torch.")


def require_layers(values: Float[Tensor, "*batch layer head dim"], shape: tuple[int, int, int]) -> None:
    """Raise unless these are values of all layers of a site of this shape."""
    if tuple(values.shape[-3:]) != shape:
        raise MismatchError(f"values have shape {tuple(values.shape)}; expected (…, layer, head, dim) = (…, {shape}).")


def rows_for(
    shape: tuple[int, int, int],
    device: torch.device,
    values: Float[Tensor, "*batch head dim"],
    valid: Bool[Tensor, "*batch"] | None,
    scratch: Scratch | None = None,
) -> Rows:
    """One layer's values, where a histogram of this shape on this device can count them."""
    if tuple(values.shape[-2:]) != shape[1:] or values.dtype not in RESOLUTIONS:
        raise MismatchError(
            f"values are {values.dtype} of shape {tuple(values.shape)}; expected a floating dtype and "
            f"(…, head, dim) = (…, {shape[1]}, {shape[2]})."
        )
    return Rows(values.to(device), None if valid is None else valid.to(device), scratch)


def finite_range(
    layer: int, rows: Rows, shape: tuple[int, int, int]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The range of the values; everything that can be wrong with them is found here, before any is counted."""
    if not 0 <= layer < shape[0]:
        raise MismatchError(f"layer {layer} does not exist: this histogram has {shape[0]} layers, counted from 0.")
    require_rows_of(rows, shape, slice(layer, layer + 1))
    low, high = rows.range()
    require_finite_ends(low.view(1, *shape[1:]), high.view(1, *shape[1:]), first_layer=layer)
    return low, high


def require_rows_of(rows: Rows, shape: tuple[int, int, int], layers: slice) -> None:
    """Raise unless rows are of these layers."""
    expected = (len(range(shape[0])[layers]) * shape[1], shape[2])
    if rows.shape != expected:
        raise MismatchError(f"rows are of {rows.shape} (head, dim); expected {expected}.")


def not_finite(low: Float[Tensor, "*neurons"], high: Float[Tensor, "*neurons"]) -> Bool[Tensor, "*neurons"]:
    """Of which neurons NaN or infinity was seen, by their range."""
    # NaN propagates through both ends. Both ends are infinite the other way round when there are no values.
    return low.isnan() | (low == -torch.inf) | (high == torch.inf)


def require_finite_ends(
    low: Float[Tensor, "layer head dim"], high: Float[Tensor, "layer head dim"], *, first_layer: int = 0
) -> None:
    """Raise `NonFiniteError` for the first neuron whose range says that it was not finite."""
    bad = not_finite(low, high).nonzero()
    if len(bad):
        layer, head, dim = bad[0].tolist()
        ends = low[layer, head, dim].item(), high[layer, head, dim].item()
        value = ends[0] if not math.isfinite(ends[0]) else ends[1]
        raise NonFiniteError(
            f"{neuron_name(first_layer + layer, head, dim)} is {value} somewhere in this batch; statistics "
            "count finite values only, so nothing of it was counted. Look for overflow: float16 often needs "
            "bfloat16 or float32."
        )


def require_like(mine: object, theirs: object) -> None:
    """Raise unless two histograms are of one kind, shape, number of bins and resolution."""
    for what, advice in (
        ("kind", "merge like with like"),
        ("shape", "collect both from the same model and site"),
        ("bins", "coarsen the finer one"),
        ("resolution", "collect both in the same dtype"),
    ):
        one, two = (type(each).__name__ if what == "kind" else getattr(each, what, None) for each in (mine, theirs))
        if one != two:
            one, two = (dtype_name(each) if isinstance(each, torch.dtype) else each for each in (one, two))
            raise MismatchError(f"histograms of unlike {what} do not add up: {one} and {two}; {advice}.")


def shares(q: float | Sequence[float], device: torch.device) -> Float[Tensor, "*q"]:
    """Shares between 0 and 1, as quantiles want them."""
    wanted = torch.as_tensor(q, dtype=torch.float64, device=device)
    if not bool(((wanted >= 0) & (wanted <= 1)).all()):
        raise MismatchError(f"quantile {q} is not between 0 and 1.")
    return wanted


def describe_counts(kind: str, shape: tuple[int, int, int], bins: int, total: Int64[Tensor, "layer head dim"]) -> str:
    """`NeuronHistogram(4 layers × 8 heads × 16 dims, 256 bins, 20 480 values per neuron)`."""
    low, high = (f"{int(end):,}".replace(",", " ") for end in (total.min(), total.max()))
    seen = "no values" if high == "0" else f"{low if low == high else f'{low}–{high}'} values per neuron"
    sizes = " × ".join(
        f"{size} {word}{'' if size == 1 else 's'}" for size, word in zip(shape, ("layer", "head", "dim"), strict=True)
    )
    return f"{kind}({sizes}, {bins} bins, {seen})"
