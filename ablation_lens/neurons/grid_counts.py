"""Counts per neuron and bin, and what can be read off them: edges, centres, quantiles, a file's contents."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ablation_lens.errors import FileFormatError, MismatchError
from ablation_lens.neurons.grid import RESOLUTIONS, Binning, Counter, Grid, scale_by
from ablation_lens.neurons.rows import own_memory
from ablation_lens.sites import neuron_name

RESOLUTION_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in RESOLUTIONS}
_HEADER = {"kind", "shape", "bins", "resolution"}


class GridCounts:
    """The state `NeuronHistogram` and `TrimmedHistogram` share, and everything that only reads it."""

    _margin = 0
    """How many bins are kept on either side of the range, for values outside it."""

    def _allocate(self, shape: Sequence[int], bins: int, resolution: torch.dtype, device: torch.device | str) -> None:
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
            self._counts = torch.zeros(*self.shape, bins + 2 * self._margin, dtype=torch.int64, device=device)
            self._exponent = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self._offset = torch.zeros_like(self._exponent)
            self._minimum = torch.full(self.shape, torch.inf, dtype=torch.float64, device=device)
            self._maximum = -self._minimum
        self._binnings: list[Binning | None] = [None] * self.shape[0]
        self._counter = Counter()

    def _place(self, layer: int, low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"]) -> None:
        """Set the range of a layer, and with it the grid."""
        grid = Grid.fitting(low, high, self.bins, self.resolution)
        for state, part in (
            (self._minimum, low),
            (self._maximum, high),
            (self._exponent, grid.exponent),
            (self._offset, grid.offset),
        ):
            state[layer] = part.view(self.shape[1:])
        self._binnings[layer] = None

    def _grid(self, layer: int) -> Grid:
        return Grid(self._exponent[layer].flatten(), self._offset[layer].flatten())

    def _range(self, layer: int) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
        return self._minimum[layer].flatten(), self._maximum[layer].flatten()

    def _flat_counts(self, layer: int) -> Int64[Tensor, "neuron stored"]:
        return self._counts[layer].view(-1, self._counts.shape[-1])

    def _inner(self, counts: Int64[Tensor, "*neurons stored"]) -> Int64[Tensor, "*neurons bin"]:
        return counts[..., self._margin : counts.shape[-1] - self._margin]

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

    def counts(self, neuron: tuple[int, ...] | int = ()) -> Int64[Tensor, "*rest bin"]:
        """The counts of a neuron `(layer, head, dim)`, of a layer, or of all neurons; a copy.

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
        >>> NeuronHistogram((2, 3, 4), bins=8).counts(1).shape
        torch.Size([3, 4, 8])
        """
        return self._inner(self._counts)[self._checked(neuron)].clone()

    def edges(self, neuron: tuple[int, ...] | int = ()) -> Float[Tensor, "*rest edge"]:
        """The edges of the bins, one more than bins, of a neuron, of a layer, or of all neurons.

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
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

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
        >>> histogram = NeuronHistogram((1, 1, 1), bins=4)
        >>> histogram.update(torch.tensor([0.0, 2.5, 2.75, 3.5]).view(4, 1, 1, 1))
        >>> histogram.bin_center(histogram.counts().argmax(-1)).item()
        2.5
        """
        return self._known(scale_by((self._offset + index).double() + 0.5, self._exponent))

    def _checked(self, neuron: tuple[int, ...] | int) -> tuple[int, ...]:
        place = (neuron,) if isinstance(neuron, int) else tuple(neuron)
        if len(place) > 3 or not all(0 <= at < size for at, size in zip(place, self.shape, strict=False)):
            raise MismatchError(
                f"{place} is not a neuron or layer here: shape is {self.shape} (layer, head, dim), counted from 0."
            )
        return place

    def quantile(self, q: float | Sequence[float]) -> Float[Tensor, "*q layer head dim"]:
        """The value below which a share `q` of a neuron's values lies, within one ε of NumPy's answer.

        The values of a bin are taken to lie evenly in it; minimum and maximum are exact, and between two
        values NumPy's linear interpolation applies. NaN where nothing was counted.

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
        >>> histogram = NeuronHistogram((1, 1, 1))
        >>> histogram.update(torch.arange(101.0).view(101, 1, 1, 1))
        >>> histogram.quantile([0.0, 0.25, 1.0]).flatten().tolist()
        [0.0, 25.25, 100.0]
        """
        wanted = torch.as_tensor(q, dtype=torch.float64, device=self.device)
        if not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise MismatchError(f"quantile {q} is not between 0 and 1.")
        with own_memory():
            layers = [self._quantiles(layer, wanted.flatten()) for layer in range(self.shape[0])]
        return torch.stack(layers, 1).view(*wanted.shape, *self.shape)

    def _quantiles(self, layer: int, wanted: Float[Tensor, " q"]) -> Float[Tensor, "q head dim"]:
        cumulative = self._counts[layer].cumsum(-1)
        last = cumulative[..., -1:] - 1
        rank = wanted * last.clamp(min=0)
        below = rank.floor()
        weight = rank - below
        low = self._ordered(layer, cumulative, below.long())
        high = self._ordered(layer, cumulative, torch.minimum(below.long() + 1, last.clamp(min=0)))
        values = torch.where(weight > 0, low + (high - low) * weight, low)
        return values.masked_fill(last < 0, torch.nan).movedim(-1, 0)

    def _ordered(
        self, layer: int, cumulative: Int64[Tensor, "head dim stored"], index: Int64[Tensor, "head dim q"]
    ) -> Float[Tensor, "head dim q"]:
        """The `index`-th smallest value (from 0), supposing that a bin's values lie evenly in it."""
        low, high = self._minimum[layer].unsqueeze(-1), self._maximum[layer].unsqueeze(-1)
        inside = self._within(layer, cumulative, index).clamp(low, high)
        return torch.where(index == 0, low, torch.where(index == cumulative[..., -1:] - 1, high, inside))

    def _within(
        self, layer: int, cumulative: Int64[Tensor, "head dim stored"], index: Int64[Tensor, "head dim q"]
    ) -> Float[Tensor, "head dim q"]:
        place = torch.searchsorted(cumulative, index, right=True).clamp(max=cumulative.shape[-1] - 1)
        count = self._counts[layer].gather(-1, place)
        share = (index - (cumulative.gather(-1, place) - count) + 0.5) / count
        cell = self._offset[layer].unsqueeze(-1) + place - self._margin
        return scale_by(cell.double() + share, self._exponent[layer].unsqueeze(-1))

    def __repr__(self) -> str:
        totals = self.total
        low, high = (f"{int(end):,}".replace(",", " ") for end in (totals.min(), totals.max()))
        seen = "no values" if high == "0" else f"{low if low == high else f'{low}–{high}'} values per neuron"
        sizes = " × ".join(
            f"{size} {word}{'' if size == 1 else 's'}"
            for size, word in zip(self.shape, ("layer", "head", "dim"), strict=True)
        )
        return f"{type(self).__name__}({sizes}, {self.bins} bins, {seen})"

    # ------------------------------------------------------------------ to and from a file's contents

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and a header of plain JSON values, for a safetensors file; `from_state` is the inverse.

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
        >>> tensors, header = NeuronHistogram((1, 2, 3), bins=8).state()
        >>> header
        {'kind': 'NeuronHistogram', 'shape': [1, 2, 3], 'bins': 8, 'resolution': 'float32'}
        """
        header = {
            "kind": type(self).__name__,
            "shape": list(self.shape),
            "bins": self.bins,
            "resolution": dtype_name(self.resolution),
        }
        return {name: tensor.clone() for name, tensor in self._tensors().items()} | {"total": self.total}, header

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "counts": self._counts,
            "exponent": self._exponent,
            "offset": self._offset,
            "minimum": self._minimum,
            "maximum": self._maximum,
        }

    @classmethod
    def from_state(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> Self:
        """A histogram from what `state` gave; contents that no collection can have produced are refused.

        >>> from ablation_lens.neurons.histogram import NeuronHistogram
        >>> histogram = NeuronHistogram((1, 1, 1))
        >>> histogram.update(torch.ones(5, 1, 1, 1))
        >>> NeuronHistogram.from_state(*histogram.state()).total.item()
        5
        """
        shape, bins, resolution = cls._read_header(header)
        result = object.__new__(cls)
        # The tensors' sizes are compared before memory is taken: a header can claim anything.
        stored = (*shape, bins + 2 * cls._margin)
        kinds = {"counts": torch.int64, "exponent": torch.int64, "offset": torch.int64, "total": torch.int64}
        kinds |= {"minimum": torch.float64, "maximum": torch.float64}
        wanted = {name: (dtype, stored if name == "counts" else shape) for name, dtype in kinds.items()}
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != wanted:
            name = min(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise FileFormatError(
                f"a {cls.__name__} file should hold {name} as {wanted.get(name, 'nothing')}, but holds "
                f"{found.get(name, 'nothing')}; it was cut short or changed, so collect again."
            )
        result._allocate(shape, bins, resolution, device)
        with own_memory():
            for name, state in result._tensors().items():
                state.copy_(tensors[name])
            for flaw, where in result._flaws(tensors["total"].to(device)):
                if where.any():
                    layer, head, dim = where.nonzero()[0].tolist()
                    raise FileFormatError(
                        f"{neuron_name(layer, head, dim)} of a {cls.__name__} file has {flaw}, which no collection "
                        "produces; the file was changed or damaged, so collect again."
                    )
        return result

    @classmethod
    def _read_header(cls, header: Mapping[str, Any]) -> tuple[tuple[int, int, int], int, torch.dtype]:
        def is_size(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 1

        if (
            not isinstance(header, Mapping)
            or set(header) != _HEADER
            or header["kind"] != cls.__name__
            or not isinstance(header["shape"], list | tuple)
            or len(header["shape"]) != 3
            or not all(map(is_size, header["shape"]))
            or not is_size(header["bins"])
            or not 2 <= header["bins"] <= 2**16
            or header["resolution"] not in list(RESOLUTION_NAMES)
        ):
            raise FileFormatError(
                f"{header} is not the header of a {cls.__name__}; expected kind, shape (three sizes), bins (2 to "
                f"65536) and resolution ({', '.join(RESOLUTION_NAMES)})."
            )
        layers, heads, dims = header["shape"]
        return (layers, heads, dims), header["bins"], RESOLUTION_NAMES[header["resolution"]]

    def _flaws(self, total: Int64[Tensor, "layer head dim"]) -> Iterator[tuple[str, Bool[Tensor, "layer head dim"]]]:
        """What must not be, and where it is; later checks rely on earlier ones having found nothing."""
        low, high = self._minimum, self._maximum
        empty = (low == torch.inf) & (high == -torch.inf)
        yield "a negative count", (self._counts < 0).any(-1)
        yield "counts beyond 2^62", self._counts.double().sum(-1) >= 2.0**62
        yield "a total that is not the sum of its counts", self.total != total
        yield "a range that is not finite", ~empty & ~(low.isfinite() & high.isfinite())
        yield "a minimum above its maximum", ~empty & (low > high)
        yield "a range that ends in -0.0", ((low == 0) & low.signbit()) | ((high == 0) & high.signbit())
        grid = Grid.fitting(low, high, self.bins, self.resolution)
        yield "bins that do not fit its range", (self._exponent != grid.exponent) | (self._offset != grid.offset)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` → `float32`."""
    return str(dtype).removeprefix("torch.")
